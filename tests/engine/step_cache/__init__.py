"""Tests of `engine/step_cache/`."""
