# `make demo` and `make test` are all that a fresh machine needs: Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test check fix serve tensorboard bench lock clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## the environment in .venv, by the lock, and the Triton wheel

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("unitrain needs Python 3.11 or newer; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[examples,dev]'
	$(BIN)/python -m unitrain serve --install
	@touch $@

demo: $(READY)  ## trains on real signals while a real Triton serves each new version, then streams predictions
	$(BIN)/python -m examples.signals_clustering_demo.demo

# Three workers on two cores: a third of the time of many tests is waiting for servers and processes.
test: $(READY)  ## every test, those against the real Triton too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(READY)  ## what the linter and the formatter can mend themselves
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(READY)  ## Triton on triton_repo/, until Ctrl-C
	$(BIN)/python -m unitrain serve --model-repository triton_repo

tensorboard: $(READY)  ## TensorBoard on experiments/
	$(BIN)/python -m unitrain tensorboard

bench: $(READY)  ## every benchmark, over an hour in all; each prints its ratios
	@for file in $$(grep -l __main__ benchmarks/*.py); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

lock: $(READY)  ## write requirements.lock anew from the environment
	$(BIN)/pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > requirements.lock

clean:  ## removes the environment and what training left
	rm -rf $(VENV) experiments build dist *.egg-info
