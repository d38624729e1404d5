# Two commands: `make reproduce` and `make test`. Each sets up what it needs; quick the second time.
PYTHON ?= python3
VENV ?= .venv
CUDA ?= cuda13
CONSTRAINTS ?= -c constraints.txt
BIN := $(VENV)/bin
STARTED := $(shell date +%s)

.PHONY: help reproduce device test test-slow test-all lint docs dist clean

help:
	@echo "make reproduce   the studies of the paper at the quick preset: figures and tables under out/quick"
	@echo "make test        format, types and tests; make test-slow: the long ones; make test-all: both"
	@echo "make docs        the documentation, in out/docs"
	@echo "make device      equality, speed and memory on one GPU; CUDA=cuda12 for an older driver"
	@echo "python -m benchmarks NAME   against the peers; see benchmarks/README.md"

reproduce: $(VENV)/.run
	@echo "environment: $$(($$(date +%s) - $(STARTED))) s"
	$(BIN)/python -m experiments reproduce --preset quick
	@echo "environment and experiments: $$(($$(date +%s) - $(STARTED))) s"

device: $(VENV)/.run
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) 'jax[$(CUDA)]'
	$(BIN)/python -m benchmarks device

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-all: test test-slow

lint: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

dist: $(VENV)/.dev
	$(BIN)/python -m hatchling build

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "isouq needs Python 3.11 or newer; '$(PYTHON)' is older or missing: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed: install your system's venv package (Debian: python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[experiments]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[text,docs]' --group dev
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) out
