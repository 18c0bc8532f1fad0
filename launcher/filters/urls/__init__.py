"""Asks services at a URL for filters: which may be asked, questions within limits, pictures as data URLs."""
