"""Reads nftables rulesets, in JSON and in nft's own syntax."""
