"""The host's network, and the path of a packet through it: bridges, VLANs, hooks, routing."""
