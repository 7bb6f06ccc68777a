"""Simulates a packet: the rules it meets, the verdict, and the line of the configuration behind it."""
