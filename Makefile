# Two commands: `make demo` and `make test`. Each makes .venv first if it is missing.
# On Linux pip may take a CUDA build of torch (gigabytes) where no CPU wheel is at hand; then give
# PyTorch's own CPU index:  make demo PIP_ARGS="--extra-index-url URL"

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test test-gpu test-slow check format clean

demo: $(READY)
	$(VENV)/bin/qvae demo $(DEMO)

test: $(READY)
	$(PY) -m pytest -m "not slow and not gpu"

test-gpu: $(READY)
	$(PY) -m pytest -m gpu --durations=5

test-slow: $(READY)
	$(PY) -m pytest -m slow

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(READY)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

$(READY): pyproject.toml constraints.txt $(wildcard native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "qvae needs Python >= 3.11; set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt $(PIP_ARGS) "pip>=25.1"
	$(PY) -m pip install -q -c constraints.txt $(PIP_ARGS) -e ".[data]" --group dev
	@touch $@

clean:
	rm -rf $(VENV) build dist
