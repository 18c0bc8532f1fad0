"""The quantised forms that files store tensors in, and how they say so."""
