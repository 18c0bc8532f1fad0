"""Run with pytest; `tests.oracle` and `tests.engine_runs` are what most of them stand on."""
