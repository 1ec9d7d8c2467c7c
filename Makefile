# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Tests wait for servers and processes for half of their time: twice as many workers as cores keep the cores busy.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? 2 * n : 8)))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup demo test test-all coverage check fix serve tensorboard bench lock clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## Create the environment in .venv and download the Triton wheel

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("unitrain needs Python 3.11 or newer; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[examples,dev]'
	$(BIN)/python -m unitrain serve --install
	@touch $@

demo: $(READY)  ## Train on real signals, serve each new version with Triton, stream predictions
	$(BIN)/python -m examples.signals_clustering_demo.demo

test: $(READY)  ## Run the tests of every feature (about 8 minutes on two cores)
	$(PYTEST) -m "not slow"

test-all: $(READY)  ## Run all tests, with every example's training (about half an hour on two cores)
	$(PYTEST)

coverage: $(READY)  ## Run `make test` and fail below the coverage floor
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered

check: $(READY)  ## Check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(READY)  ## Fix what the linter and the formatter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(READY)  ## Serve triton_repo/ with Triton until Ctrl-C
	$(BIN)/python -m unitrain serve --model-repository triton_repo

tensorboard: $(READY)  ## Show experiments/ in TensorBoard
	$(BIN)/python -m unitrain tensorboard

bench: $(READY)  ## Run all benchmarks (over an hour); each prints its ratios
	@for file in $$(grep -l __main__ benchmarks/*.py); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

lock: $(READY)  ## Write requirements.lock from the environment, and the locks with hashes in requirements/
	$(BIN)/pip freeze --exclude-editable --exclude uv | sed -E 's/\+cpu$$//' > requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/python requirements/compile.py

clean:  ## Remove the environment, builds and experiments/
	rm -rf $(VENV) experiments build dist *.egg-info .coverage .coverage.*
