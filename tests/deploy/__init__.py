"""What deploy/ has: linted, rendered, and held to what the server takes, answers and counts."""
