# Two verbs set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test check clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(VENV)/bin/cema demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest

check: $(INSTALLED)
	PATH="$(abspath $(VENV))/bin:$$PATH" scripts/check

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "CEMA needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another interpreter: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

clean:
	rm -rf $(VENV) build dist
