"""Use cases that need the compiled configuration, the host and the checker together. Nothing here prints."""
