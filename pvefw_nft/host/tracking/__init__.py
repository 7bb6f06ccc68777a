"""Connection tracking on the host: reading connections, and keeping them across changes of zones."""
