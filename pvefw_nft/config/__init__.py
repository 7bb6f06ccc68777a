"""The front end: firewall files and guest configs to a typed model, or diagnostics."""
