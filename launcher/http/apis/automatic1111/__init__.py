"""The API of AUTOMATIC1111's Stable Diffusion web UI, `/sdapi/v1/…`, as its clients use it."""
