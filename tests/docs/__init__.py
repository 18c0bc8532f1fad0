"""What the documents say, held to the code."""
