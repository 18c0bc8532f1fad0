"""What becomes of one request while engines come and go: what was told of it, and what is to be done next."""
