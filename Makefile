# Two commands a newcomer needs: `make demo` and `make test`. Each installs all it needs into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all zoo check format clean

help:            ## list the commands
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Excise needs Python 3.11 or newer; got $$($(PYTHON) --version). Set PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar off --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## create .venv and install Excise with its development tools

demo: install    ## plant a backdoor, cut it out with Grad-Prune, which is told it, report it; downloads no data
	$(BIN)/excise demo

# One thread a worker: two torch processes of two threads each starve one another on two cores.
test: install    ## every test but the slow ones, in parallel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n auto

test-all: install  ## every test, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

zoo: install     ## every attack planted, clean twins, small clean networks; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/zoo.py --workers 2 $(ZOO)
	$(BIN)/python benchmarks/zoo_table.py --write

check: install   ## style, types, walls and the fast tests; under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m fast -n auto -q

format: install  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:           ## remove the environment and every cache
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis build dist
