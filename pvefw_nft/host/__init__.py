"""The host: applying and removing rulesets, their state and lock, and the firewall bridges of guests.

The only package that starts programs, talks netlink or writes kernel settings. It takes artefacts as data and
knows no configuration: the caller compiles.
"""
