"""How files store quantised tensors: formats, scales, and the metadata that names them."""
