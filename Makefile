# Two commands for a fresh machine: `make demo` and `make test`. They need Python 3.11+ and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo demo-federation test test-all test-lowest lint types docs figures linkcheck tutorials clean
.DEFAULT_GOAL := demo

# torch comes first, so that what depends on it does not fetch a build for GPUs
$(BIN)/.scinfl: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(BIN)/.scinfl-%: $(BIN)/.scinfl
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

demo: $(BIN)/.scinfl
	$(BIN)/scinfl demo --out demo --overwrite

demo-federation: $(BIN)/.scinfl-flower
	$(BIN)/python benchmarks/flower_mosaic.py --out demo_federation/mosaic
	$(BIN)/python benchmarks/flower.py --out demo_federation/classifier

test: $(BIN)/.scinfl-test
	$(BIN)/python -m pytest

test-all: $(BIN)/.scinfl-test
	$(BIN)/python -m pytest -m "slow or not slow"

# the lowest versions that pyproject.toml allows, in an environment of their own; needs uv
test-lowest:
	uv venv --quiet --clear --python 3.11 $(VENV)-lowest
	uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct --editable ".[test]"
	$(VENV)-lowest/bin/python -m pytest

lint: $(BIN)/.scinfl-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/check_words.py

types: $(BIN)/.scinfl-lint
	$(BIN)/mypy

docs: $(BIN)/.scinfl-doc
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# figures of the reference, drawn again after a change of a plot
figures: $(BIN)/.scinfl-test
	$(BIN)/python docs/figures.py

# links between pages, files and places in them; addresses on the internet are not tried
linkcheck: docs
	$(BIN)/python docs/check_links.py docs/_build/html README.md CONTRIBUTING.md

tutorials: $(BIN)/.scinfl-test
	$(BIN)/python -m pytest tests/test_tutorials.py -m slow -k notebooks --durations=0

clean:
	rm -rf $(VENV) demo demo_federation docs/_build .pytest_cache .ruff_cache .mypy_cache
