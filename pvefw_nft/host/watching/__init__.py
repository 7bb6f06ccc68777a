"""What the service watches: files, links, and rules that other programs change."""
