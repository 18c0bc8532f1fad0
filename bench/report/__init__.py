"""Results as the README's table and a plot: `python -m bench.report`."""
