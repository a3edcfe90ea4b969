# Everything from a fresh clone: `make demo`, `make test`. Only python3 (3.11 or newer, with venv) is assumed;
# a C++ compiler and nvcc are used when they are there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TRITON36 := $(VENV)/triton36
# Test processes of one thread each, for a machine of two cores.
WORKERS ?= 2

.PHONY: help install build test lint demo bench wheel clean

help:
	@echo "make demo     train on the embedded drawings, evaluate, write runs/demo"
	@echo "make test     ruff, mypy and every test"
	@echo "make lint     ruff and mypy alone"
	@echo "make bench    the benchmarks against their baselines"
	@echo "make build    recompile the extension in place (only what changed)"
	@echo "make wheel    build a wheel into dist/"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Editable: a change of Python code needs no reinstall, a change of the build or of csrc/ does.
$(INSTALLED): pyproject.toml setup.py $(wildcard csrc/* csrc/*/* csrc/*/*/*) | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[test]"
	@touch $@

# The oldest Triton supported, beside the installed one: the kernels are compiled offline with both.
$(TRITON36)/.installed: | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target $(TRITON36) triton==3.6.0
	@touch $@

install: $(INSTALLED)

build: $(INSTALLED)
	$(BIN)/python setup.py -q build_ext --inplace

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(TRITON36)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --triton36=$(TRITON36)

demo: $(INSTALLED)
	$(BIN)/hystar-fast demo --output runs/demo

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench

wheel: $(INSTALLED)
	rm -rf build
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

clean:
	rm -rf build dist $(VENV) *.egg-info hystar_fast/_C*.so
