"""pvefw: compiles Proxmox VE firewall files to iptables or nftables rulesets, applies and proves them."""
