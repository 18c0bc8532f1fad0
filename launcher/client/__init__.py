"""Clients of a front-end: `Client`, `AsyncClient`, and the results that they give."""
