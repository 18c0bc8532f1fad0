"""How a denoise step scales over 2 and 4 GPUs: `python -m bench.scaling`."""
