"""The intermediate representation: the meaning of a configuration, before any backend spells it."""
