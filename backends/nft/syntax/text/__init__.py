"""The same language as nft writes it (nft(8)), for people, and for ``nft -f``: spelled from the commands in JSON.

The text and the JSON of a ruleset give the same rules in the kernel, since nothing is said here that is not in a
command. No kernel and no library is asked. Numbers that have a name in nft have it here where nft needs no file of the
host to know it. Where its versions write a thing differently, the form stands here that all of them read.

The commands may come from an untrusted process. Each place takes what is listed for it and nothing else: a word of a
fixed list, an identifier, a number, an address, or text between quotes. An object with another key or of another type
raises :class:`InternalError`, and so does text that cannot stand between quotes, since nft has no way to escape it.
nft's scanner (scanner.l of 1.0.6 and 1.1.3) reads an identifier as one token, and a text between quotes up to the next
quote, whatever else is in it. So no value can end its statement, or the line of its command.

Example: ``{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}`` is
``tcp dport 22``.
"""
