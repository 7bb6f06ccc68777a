"""The backends: each lowers the IR of :mod:`pvefw_nft.ir` to the ruleset language of one tool."""
