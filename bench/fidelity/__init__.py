"""What each choice costs in exactness: `python -m bench.fidelity`."""
