"""What the kernel says of its rules and connections, over netlink and through its tools."""
