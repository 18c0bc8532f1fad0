"""Images that begin from a picture: how many steps they get, what they start from, and what of it stays."""
