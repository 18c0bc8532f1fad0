"""Ranks as processes: how the front-end starts, hears and replaces them, and what runs in them."""
