"""Proxmox VE's own firewall on this host: seeing it, taking over from it, handing back to it."""
