# `make demo` and `make test` do everything, set-up included, on a machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
CODE := mosaics_jax experiments launch benchmarks tests

.PHONY: demo test lint install
demo: install
	$(RUN) -m experiments.babistories --flagfile=experiments/flags/demo.flags --workdir=runs/demo

test: install
	$(RUN) -m pytest -n auto --dist=worksteal

lint: install
	$(VENV)/bin/ruff format --check $(CODE)
	$(VENV)/bin/ruff check $(CODE)
	$(VENV)/bin/mypy

install: $(VENV)/.installed
$(VENV)/.installed: requirements.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@
