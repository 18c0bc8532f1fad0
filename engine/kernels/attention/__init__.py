"""Attention inside the segments of a packed batch: the backends, which serves a device best, and their plans."""
