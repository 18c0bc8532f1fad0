"""The benchmarks, at sizes that say nothing about speed."""
