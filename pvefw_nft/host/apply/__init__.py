"""Applying rulesets: what is there, what is wanted, the plan between them, and executing it.

One engine a backend (:mod:`.engines`); the commands see no other part.
"""
