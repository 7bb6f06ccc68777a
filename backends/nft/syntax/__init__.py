"""The language of libnftables' JSON (libnftables-json(5)) as types: expressions, statements, objects, transactions.

Nothing here knows about firewalls, guests or the IR.
"""
