"""What the parameters of a request may hold, and what other programs call theirs, for every door."""
