"""Results as the table of docs/benchmarks.md and a plot: `python -m bench.report`."""
