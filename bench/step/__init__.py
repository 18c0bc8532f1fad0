"""One denoise step against its floor and diffusers: `python -m bench.step`."""
