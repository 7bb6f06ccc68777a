"""The intermediate representation: what a configuration means, before any backend spells it."""
