"""Chat completions that draw."""
