"""The nft backend: two tables of nftables, bridge for guests and inet for the host, in one JSON transaction."""

from backends.nft.backend import NftBackend

__all__ = ["NftBackend"]
