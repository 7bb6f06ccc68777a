"""The front end: from the files of a Proxmox VE firewall to a typed model and diagnostics."""
