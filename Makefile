# Every target but gpu does its own set-up: a virtual environment in .venv, by plain pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src tests benchmarks examples tools

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint types format docs docs-serve audit dist bench bench-short bench-serve gpu browser clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "torch-dent needs Python 3.11 or later; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.user

demo: $(VENV)/.user  ## Static against dent+ on bundled CIFAR-10 images.
	$(BIN)/dent demo

test: $(VENV)/.dev  ## Run the tests.
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 \
		$(BIN)/pytest -n 2 --dist worksteal --durations=25 -m 'not slow and not network'

test-slow: $(VENV)/.dev  ## Run the tests that take long or ask a package registry.
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow or network'

lint: $(VENV)/.dev  ## Check format, style and the direction of imports.
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/lint-imports

types: $(VENV)/.dev  ## Check types.
	$(BIN)/mypy

format: $(VENV)/.dev  ## Format the code, and fix what ruff can fix.
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(VENV)/.dev  ## Build the documentation into site/; a broken link or anchor fails.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.dev  ## Show the documentation while it is written.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

audit: $(VENV)/.dev  ## Ask for known vulnerabilities of what is installed.
	$(BIN)/python tools/audit.py

dist: $(VENV)/.dev  ## Build sources and wheel into dist/; the wheel is the same whenever it is built.
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} \
		$(BIN)/python -m build --no-isolation

bench: $(VENV)/.dev  ## Measure what defenses, attacks and the evaluation cost: one JSON, one page.
	$(BIN)/python benchmarks/bench.py

bench-short: $(VENV)/.dev  ## Print a few of these ratios; says nothing about time.
	$(BIN)/python benchmarks/cost.py --short --out runs/bench-short.json

bench-serve: $(VENV)/.dev  ## Measure dent serve under load, on this machine alone.
	$(BIN)/python benchmarks/serve.py

gpu:  ## Run tests, bench, a verdict and trainings on a GPU; needs no network, installs nothing here.
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py

browser:  ## Install the browser that tests the report page (Debian, as root); without it they skip.
	@command -v chromium >/dev/null || \
		{ apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium; } || \
		echo "no chromium: the tests of the report page will skip" >&2

clean:  ## Remove the virtual environment and caches.
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
