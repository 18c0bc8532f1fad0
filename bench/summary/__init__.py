"""The last table of bench/gpu.sh: `python -m bench.summary`."""
