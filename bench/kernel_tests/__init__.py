"""The tests of the kernels, several files at once: `python -m bench.kernel_tests`."""
