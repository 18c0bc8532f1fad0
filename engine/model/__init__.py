"""Krea 2: text encoder, text fusion, the diffusion transformer and the VAE's decoder. Only the mathematics."""
