"""Read the kernel's rules and connections, by netlink and by its tools."""
