"""The iptables backend: the PVEFW chains of the reference, for iptables-restore, ipset and ebtables-restore."""

from pvefw_nft.backends.iptables.backend import IptablesBackend

BACKEND = IptablesBackend

__all__ = ["BACKEND", "IptablesBackend"]
