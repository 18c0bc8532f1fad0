"""Filters that ask a service at a URL."""
