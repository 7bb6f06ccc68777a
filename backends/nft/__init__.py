"""The nft backend: two tables of nftables, bridge for guests and inet for the host, in one JSON transaction."""

from pvefw_nft.backends.nft.backend import NftBackend

__all__ = ["NftBackend"]
