"""Records on disk: which ruleset runs, which was confirmed last, and how to go back."""
