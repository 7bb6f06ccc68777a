"""The watches of the service: files, links, and rules that other programs change."""
