"""What touches the host: tools, netlink, sysctls and the files under /run and /var."""
