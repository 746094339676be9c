# One command for each thing that is done here; `make help` lists them. The environment lives in .venv, made on first use.

.DEFAULT_GOAL := help
.PHONY: help venv search test test-all lint bench bench-full chaos clean

# A Python of your own: make PYTHON=/path/to/python3.12. Otherwise the first of these that is 3.11-3.13 and has venv.
PYTHON ?=
CANDIDATES = $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11)
SUITABLE = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# Paths stay relative, so that the folder may lie under any name; scripts are run as modules for the same reason.
VENV_PYTHON = .venv/bin/python
PIP_INSTALL = $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BENCH_DIR ?= runs/benchmarks
# Empty: recordings are generated. A folder: the PTB-XL in it, with its records100/, is read.
BENCH_DATA_ROOT ?=

help:
	@echo "make search    search ST-MEM on synthetic recordings, laptop scale: minutes on 2 cores, ends in a report"
	@echo "make test      the test suite, without the tests marked slow"
	@echo "make test-all  the whole test suite"
	@echo "make lint      ruff and mypy --strict"
	@echo "make bench     the short benchmarks, and a table of them; figures as JSON in BENCH_DIR ($(BENCH_DIR))"
	@echo "           BENCH_DATA_ROOT=DIR measures the store on the PTB-XL in DIR instead of generated recordings"
	@echo "make bench-full  those, and the long ones: hours; with BENCH_DATA_ROOT=DIR also whole searches on PTB-XL"
	@echo "make chaos     faults injected into searches on several Ray nodes here: a quarter of an hour; a table of what they cost"
	@echo "make venv      .venv with every version pinned, for all of the above (PYTHON=... chooses the Python)"
	@echo "make clean     remove caches and build products; .venv and runs stay"

venv: .venv/for-developing

search: .venv/for-running
	@$(VENV_PYTHON) launch.py search=stmem_ptbxl scale=laptop data=synthetic
	@echo "The report: runs/stmem_ptbxl-synthetic-laptop/report/index.html"

test: .venv/for-developing
	@$(VENV_PYTHON) -m pytest -m "not slow"

test-all: .venv/for-developing
	@$(VENV_PYTHON) -m pytest

lint: .venv/for-developing
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy

# One figure at a time, on a machine that does nothing else; a table of all of them at the end.
SHORT_BENCHMARKS = store loading training_step trial_start gang_start search_scale report reuse packing growth few_trials regret
LONG_BENCHMARKS = coverage sharding
LONG_FIGURES = $(LONG_BENCHMARKS) regret_long $(if $(BENCH_DATA_ROOT),end_to_end)
bench: .venv/for-developing
	@rm -f $(SHORT_BENCHMARKS:%="$(BENCH_DIR)"/%.json)
	@$(VENV_PYTHON) benchmarks/store.py $(if $(BENCH_DATA_ROOT),--data-root "$(BENCH_DATA_ROOT)") \
	  --json "$(BENCH_DIR)/store.json"
	@for name in $(filter-out store,$(SHORT_BENCHMARKS)); do \
	  $(VENV_PYTHON) benchmarks/$$name.py --json "$(BENCH_DIR)/$$name.json" || exit; done
	@$(VENV_PYTHON) benchmarks/table.py $(SHORT_BENCHMARKS:%="$(BENCH_DIR)"/%.json)

bench-full: bench
	@for name in $(LONG_BENCHMARKS); do \
	  $(VENV_PYTHON) benchmarks/$$name.py --json "$(BENCH_DIR)/$$name.json" || exit; done
	@$(VENV_PYTHON) benchmarks/regret.py --long --json "$(BENCH_DIR)/regret_long.json"
	@$(if $(BENCH_DATA_ROOT),$(VENV_PYTHON) benchmarks/end_to_end.py --data-root "$(BENCH_DATA_ROOT)" \
	  --json "$(BENCH_DIR)/end_to_end.json")
	@$(VENV_PYTHON) benchmarks/table.py $(LONG_FIGURES:%="$(BENCH_DIR)"/%.json)

chaos: .venv/for-running
	@$(VENV_PYTHON) benchmarks/chaos.py --json "$(BENCH_DIR)/chaos.json"

clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -path ./runs -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The two stamps stand for an environment that holds what pyproject.toml and constraints.txt ask for. torch comes first
# and by its exact pin: a range, met while another package is resolved, can bring gigabytes of CUDA builds. setuptools
# comes with it because nothing is built in isolation, where an unpinned one would be fetched.
.venv/for-running: pyproject.toml constraints.txt
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory new-venv
	@echo "Installing the pinned packages into .venv; the first time takes minutes ..."
	@$(PIP_INSTALL) torch setuptools
	@$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

.venv/for-developing: .venv/for-running
	@echo "Installing the pinned tools for tests and lint into .venv ..."
	@$(PIP_INSTALL) --no-build-isolation --editable ".[dev]"
	@touch $@

.PHONY: new-venv
new-venv:
	@for python in $(CANDIDATES); do \
	  if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
	    echo "Making .venv with $$("$$python" --version)"; \
	    exec "$$python" -m venv --clear .venv; \
	  fi; \
	done; \
	echo 'make: a Python 3.11, 3.12 or 3.13 with its venv module is needed; tried: $(subst ",,$(CANDIDATES)).' >&2; \
	echo '      Install one (on Debian also its -venv package), or name one: make PYTHON=/path/to/python3.12' >&2; \
	exit 1
