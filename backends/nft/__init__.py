"""The nft backend: two tables of nftables, bridge for guests and inet for the host, in one JSON transaction."""

from pvefw_nft.backends.nft.backend import NftBackend

BACKEND = NftBackend

__all__ = ["BACKEND", "NftBackend"]
