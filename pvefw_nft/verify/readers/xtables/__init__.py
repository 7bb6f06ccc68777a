"""Reads iptables and ip6tables rulesets."""
