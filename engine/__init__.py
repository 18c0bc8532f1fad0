"""The compute of krea2-engine: Krea 2's model, its sharding, kernels and sampling.

Knows nothing of sockets, processes or HTTP; those live in `launcher`. Importing this package imports no torch.
"""

__version__ = "0.1.0"
