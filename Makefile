# Two commands do everything on a fresh machine (Python 3.11 to 3.13, no GPU needed): `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CPU build of torch unless told otherwise: `make run TORCH=torch` takes the platform's default build.
TORCH ?= torch==2.13.0

.PHONY: run test lint check clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

run: $(VENV)/.installed  ## Install, then solve a sudoku before your eyes.
	$(BIN)/diffusiongemma sudoku

test: $(VENV)/.installed  ## Install, then run every test.
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

check: lint test  ## Lint, types and tests.

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
