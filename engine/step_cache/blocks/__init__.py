"""Blocks left out where the first ones show that little has changed: cache-dit's DBCache, in a packed batch."""
