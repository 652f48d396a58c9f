# Everything from a clean clone with Python >= 3.11 and make. The first target that needs it makes .venv; after that a
# call costs nothing until pyproject.toml changes. PYTHON=python3.12 chooses the interpreter, VENV=DIR the place.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
ORACLE ?= .venv-oracle
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
JOBS ?= 2

.SILENT:
.PHONY: help demo test check rules incidents picture oracle bench clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help: ## show this list
	awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## set up, then show compatkit at work on sets that failed real users
	$(BIN)/compatkit demo

test: check rules ## lint, types, the rules' own examples, all tests
	$(BIN)/python -m pytest -n $(JOBS)

check: $(VENV)/.installed-dev ## lint and types only
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --strict --no-error-summary compatkit $(wildcard benchmarks/*.py)

rules: $(VENV)/.installed ## run the examples that every rule file carries
	$(BIN)/compatkit rules test

incidents: $(VENV)/.installed ## write the worked incident reports anew (reports/incidents)
	$(BIN)/python -m reports.incidents.make

picture: $(VENV)/.installed-dev ## take the picture that the README shows (needs a Chromium)
	$(BIN)/python -m reports.incidents.picture

oracle: $(ORACLE)/.compared ## hold the grammars against the classes of diffusers and transformers (needs torch: 1 GB)
	$(ORACLE)/bin/python -m pytest -n $(JOBS) tests/oracle

bench: $(VENV)/.installed-dev ## measure what the claims about speed and size rest on
	$(BIN)/python -m benchmarks

clean: ## remove everything that make made
	rm -rf $(VENV) $(ORACLE) build dist rules/.compiled .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find compatkit tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: whatever was interrupted before it is done again by the next call.
$(VENV)/.python:
	test -n "$(PYTHON)" || { echo "compatkit needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit("compatkit needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	echo "setting up $(VENV) (once)" >&2
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml hatch_build.py
	$(PIP) install --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.python pyproject.toml hatch_build.py
	$(PIP) install --editable '.[dev]'
	touch $(VENV)/.installed $@

# torch first and alone: what comes after it must take the one that is there, not choose another.
$(ORACLE)/.compared: pyproject.toml hatch_build.py
	$(MAKE) --no-print-directory VENV=$(ORACLE) $(ORACLE)/.python
	$(ORACLE)/bin/python -m pip -qq --disable-pip-version-check --no-input install torch==2.13.0
	$(ORACLE)/bin/python -m pip -qq --disable-pip-version-check --no-input install diffusers==0.42.1 transformers==5.23.0 \
		'pytest>=8.2' 'pytest-xdist>=3.6' 'hypothesis>=6.100' --editable .
	touch $@
