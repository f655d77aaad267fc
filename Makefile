# Two commands for a newcomer: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

LOWEST := .venv-lowest
AUDIT := .venv-audit

.PHONY: quickstart test test-lowest lint audit clean

quickstart: $(VENV)/installed
	$(BIN)/hpsearch run --config quickstart --trials 20
	$(BIN)/hpsearch export-best --study quickstart --overwrite
	$(BIN)/hpsearch compare --study quickstart

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# What touches the libraries most, with the oldest of them that pyproject.toml allows.
test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest tests/test_imports.py tests/test_seam.py tests/test_end_to_end.py tests/test_cli_errors.py \
		tests/test_config.py tests/test_data.py tests/test_study.py tests/test_storage.py tests/test_report.py

# Known vulnerabilities of the tested versions; fails as well where the database of advisories cannot be asked.
audit: $(AUDIT)/bin/pip-audit
	$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

# torch is named on its own and first: resolved together with the rest, pip may take a newer build with gigabytes of CUDA.
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/installed-dev: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(LOWEST)/installed: constraints-lowest.txt pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint constraints-lowest.txt torch
	$(LOWEST)/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[test]'
	touch $@

$(AUDIT)/bin/pip-audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet pip-audit

clean:
	rm -rf $(VENV) $(LOWEST) $(AUDIT)
