"""What benchmarks drive: the engine with random weights at the real size, and diffusers' pipeline beside it."""
