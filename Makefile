# `make demo` and `make test` need Python >= 3.11 and make; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The oldest Triton that the kernels are for; the package takes the newest.
OLDEST_TRITON := 3.6.0

# Test processes that run side by side. Each takes whole files, whose tests share what they start, folder by folder,
# whose tests may share a server. Ranks are threads there, and glibc keeps an arena for each that ever allocated.
WORKERS ?= 2
PYTEST = MALLOC_ARENA_MAX=2 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

# Twice if need be: pip itself asks again where nobody answers, but not for a file that broke off or after a 502.
PIP = $(BIN)/python -m pip install --quiet
install = $(PIP) $(1) || { sleep 10; $(PIP) $(1); }

# How long `make demo-checkpoint` trains: short, two-hours or full.
SCHEDULE ?= two-hours

.PHONY: demo demo-checkpoint test test-slow test-oldest-triton lint clean

demo: $(VENV)/installed
	$(BIN)/krea2 generate "a red circle on a blue background" --tp 2 --device cpu --seed 0 --output demo.png

# Trains the demo's models on the CPU and writes demo-work/$(SCHEDULE)/release; run again, it goes on where it stopped.
demo-checkpoint: $(VENV)/installed-test
	$(BIN)/python -m demo --schedule $(SCHEDULE) --work demo-work/$(SCHEDULE)

test: $(VENV)/installed-test lint
	$(PYTEST)

# These and the slow ones.
test-slow: $(VENV)/installed-test
	$(PYTEST) -m 'not gpu'

test-oldest-triton: $(VENV)/installed-test $(VENV)/triton-$(OLDEST_TRITON)
	PYTHONPATH=$(VENV)/triton-$(OLDEST_TRITON) $(PYTEST) tests/engine/kernels tests/engine/rank/test_cuda_graphs.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(call install,--editable .)
	touch $@

$(VENV)/installed-test: $(VENV)/bin/python pyproject.toml
	$(call install,--editable '.[test]')
	touch $@ $(VENV)/installed

$(VENV)/triton-%: $(VENV)/bin/python
	$(call install,--no-deps --target $@ triton==$*) || { rm -rf $@; exit 1; }

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
