"""Readers: rulesets as the tools print them, into the model."""
