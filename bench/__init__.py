"""Benchmarks and what they share with the tests. Run as `python -m bench.…`; not installed."""
