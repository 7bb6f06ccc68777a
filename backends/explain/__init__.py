"""The explain backend: the policy in English sentences, guest by guest, for people to read."""

from pvefw_nft.backends.explain.backend import ExplainBackend

BACKEND = ExplainBackend
