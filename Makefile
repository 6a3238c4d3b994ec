# Each target makes .venv on first use and brings it up to date whenever pyproject.toml or constraints.txt change.
# Needs Python 3.10 or newer and make; another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --no-input --disable-pip-version-check --quiet -c constraints.txt
# One thread for each process: the tests run in two workers, and times are compared on one thread.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
BENCHMARKS := $(sort $(wildcard benchmarks/[a-z]*.py))
# What the type checker knows: a folder that is not there yet would be an error.
CODE := $(wildcard bayeshnet benchmarks examples tests conftest.py docs/conf.py)

# The examples in the docstrings go everywhere once; these go into all corners of what has shapes in its annotations.
SHAPED := bayeshnet tests/test_shapes.py tests/metrics tests/entropy/test_fused_mlp_draw.py tests/evaluation/test_psis.py \
	tests/families/test_contract.py tests/hnets/test_contract.py tests/inducing/test_linear_gaussian.py tests/mnets/test_batched.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-shapes lint bench docs clean

help:
	@echo "make demo         fit the example and draw its picture (2 minutes)"
	@echo "make test         all tests, the slow ones and the docstrings' examples included"
	@echo "make test-shapes  the quick part of them, with the shapes in annotations checked"
	@echo "make lint         style, formatting and types"
	@echo "make bench        all benchmarks, in their short form"
	@echo "make docs         the documentation, to docs/_build/html/index.html"
	@echo "make clean        remove what these made, .venv included"

demo: $(VENV)/.installed
	MPLBACKEND=Agg $(BIN)/python examples/regression.py

test: $(VENV)/.installed
	$(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --dist worksteal

# Little of it trains a network: a shape is wrong at the first step or never.
test-shapes: $(VENV)/.installed
	BAYESHNET_CHECK_SHAPES=1 $(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(SHAPED)

lint: $(VENV)/.installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/basedpyright

bench: $(VENV)/.installed
	@set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(ONE_THREAD) $(BIN)/python $$file --quick; done

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -b html -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf $(VENV) docs/_build docs/generated .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("bayeshnet needs Python 3.10 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of extras, younger than what it was made from: with nothing changed, a target starts at once.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[plot,metrics,dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[docs]'
	@touch $@
