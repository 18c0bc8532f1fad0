"""What a step takes before it runs: which ranks do what of it, what they send, and how much memory they need."""
