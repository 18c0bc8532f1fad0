"""Many requests at once through the scheduler and a rank: `python -m bench.throughput`."""
