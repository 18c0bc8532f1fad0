"""Real proxies in front of the server, with the configurations that docs/operations.md gives."""
