# Everything from a fresh clone: `make demo`, `make test`. Only python3 (3.11 or newer, with venv) is assumed;
# a C++ compiler and nvcc are used when they are there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/.docs
TRITON36 := $(VENV)/triton36
# Test processes of one thread each, for a machine of two cores. A test of 15 minutes hangs: it fails, with the stack of
# every thread, and the others go on.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 PYTEST_TIMEOUT=900
# The versions that the tests last passed with (`make update` refreshes them), and the oldest supported ones.
CONSTRAINTS ?= constraints.txt
OLDEST := .venv-oldest
# What `make install` installs beside the package; with "test,docs" `make docs` finds its packages there.
EXTRAS ?= test
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help install build browser test test-oldest campaign lint demo bench wheel docs update clean

help:
	@echo "make demo     train on the embedded drawings, evaluate, write runs/demo"
	@echo "make test     ruff, mypy and every test"
	@echo "make browser  install Chromium, in which the tests open the page of the server"
	@echo "make campaign  random calls, public architectures, damaged files and kills: half an hour"
	@echo "make test-oldest  the core of the tests with the oldest supported versions"
	@echo "make update   install the newest versions and write them to constraints.txt"
	@echo "make lint     ruff and mypy alone"
	@echo "make bench    the benchmarks against their baselines"
	@echo "make build    recompile the extension in place (only what changed)"
	@echo "make wheel    build a wheel into dist/"
	@echo "make docs     build the documentation site into build/site"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Editable: a change of Python code needs no reinstall, a change of the build or of csrc/ does.
$(INSTALLED): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/* csrc/*/* csrc/*/*/*) | $(BIN)/python
	$(PIP) install -c $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	@touch $@ $(if $(findstring docs,$(EXTRAS)),$(DOCS))

# The oldest Triton supported, beside the installed one: the kernels are compiled offline with both.
$(TRITON36)/.installed: | $(BIN)/python
	$(PIP) install --no-deps --upgrade --target $(TRITON36) triton==3.6.0
	@touch $@

install: $(INSTALLED)

build: $(INSTALLED)
	$(BIN)/python setup.py -q build_ext --inplace

browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ command -v apt-get >/dev/null && { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; }; } || \
		{ echo "the tests of the page need Chromium: install it so that \`chromium\` is on the PATH" >&2; exit 1; }

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(TRITON36)/.installed
	$(PYTEST) $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --triton36=$(TRITON36)

# The layers that meet torch, Triton, transformers and open_clip; the rest of the suite is pure Python above them.
test-oldest:
	$(MAKE) install VENV=$(OLDEST) CONSTRAINTS=constraints-oldest.txt
	$(PYTEST) $(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow" \
		tests/ops tests/nn tests/models tests/methods

# Beside the tests: as much as half an hour of random work finds. CI runs a twentieth.
campaign: $(INSTALLED)
	$(BIN)/python -m tests.campaign --output docs/results/campaign.md

update: | $(BIN)/python
	$(PIP) install --upgrade --upgrade-strategy eager -e ".[test]"
	$(BIN)/python -m pip freeze --exclude-editable >$(CONSTRAINTS)

demo: $(INSTALLED)
	$(BIN)/hystar-fast demo --output runs/demo

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench

wheel: $(INSTALLED)
	rm -rf build
	$(PIP) wheel --no-deps -w dist .

$(DOCS): $(INSTALLED)
	$(PIP) install -c $(CONSTRAINTS) -e ".[docs]"
	@touch $@

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build dist $(VENV) *.egg-info hystar_fast/_C*.so
