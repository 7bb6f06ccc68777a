"""Reading rulesets back, explaining packets and proving rulesets equal; shares no code with the lowerings."""
