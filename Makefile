# Every verb sets up what it needs on a fresh machine. `make` alone prints them.
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed

.PHONY: help demo test bench check clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## print these verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## one cloud and two edges on this machine, on a stream that drifts
	$(VENV)/bin/cema demo

# One process a core, and one thread a process: several threads in each would wait for each other. Every process
# loads torch, hence not more than four.
test: $(INSTALLED) ## the whole test suite
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

bench: $(INSTALLED) ## how fast it is, beside the code from before and the goals; OUT=DIR writes bench.json there
	$(VENV)/bin/python benchmarks/speed/bench.py $(if $(OUT),--out "$(OUT)")

check: $(INSTALLED) ## lint, format and types: what every change passes before it is committed
	PATH="$(abspath $(VENV))/bin:$$PATH" scripts/check

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "CEMA needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another interpreter: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

clean: ## remove the environment and what was built
	rm -rf $(VENV) build dist
