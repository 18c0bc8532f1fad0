"""Every kernel at the real model's shapes, right first and then fast: `python -m bench.kernels`."""
