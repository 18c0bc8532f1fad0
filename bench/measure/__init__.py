"""How benchmarks measure and what they leave: options, timings, floors, a lost GPU, a line of results."""
