# Two commands do everything on a fresh machine (Python 3.11 to 3.13, no GPU needed): `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CPU build of torch unless told otherwise: `make run TORCH=torch` takes the platform's default build. On Linux that would be the one for
# CUDA, of several GB; the build for CPUs has an index of its own there.
CPU_BUILD := --retries 1 --timeout 15 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
TORCH ?= $(if $(filter Linux,$(shell uname -s)),$(CPU_BUILD),torch==2.13.0)

.PHONY: run test lint check clean

$(VENV)/.run: pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed: $(VENV)/.run
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

run: $(VENV)/.run  ## Install what running needs, then solve a sudoku before your eyes.
	$(BIN)/diffusiongemma sudoku
	@echo "The command is $(BIN)/diffusiongemma; source $(BIN)/activate makes it diffusiongemma."

# The page is tested in a browser: the one that is there, else from the system's packages or playwright's store. Where neither can be
# had, the tests of the page are skipped and say so; `make test BROWSER=skip` installs none.
BROWSER ?= install
$(VENV)/.browser: $(VENV)/.installed
	@[ $(BROWSER) = skip ] \
	  || { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } \
	  || $(BIN)/python -m playwright install chromium >/dev/null 2>&1 \
	  || echo "No browser could be installed: the tests of the page will be skipped."
	@touch $@

test: $(VENV)/.installed $(VENV)/.browser  ## Install, then run every test.
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

check: lint test  ## Lint, types and tests.

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
