"""A load on a server of images: `python -m bench.serve`."""
