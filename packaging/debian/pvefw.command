#!/usr/bin/python3 -I
"""pvefw(8): firewall of KVM and LXC hosts from Proxmox VE firewall files."""

from pvefw_nft.cli import run

run()
