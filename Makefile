# Every target works from a bare checkout: the first one to run creates .venv from the tested versions.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := .venv-peers/.installed

.PHONY: help demo test lint types bench mutants experiments clean
.DEFAULT_GOAL := help
BOTH_CORES := iwae_table beta_vae expressive_posterior

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,flows]'
	@touch $@

demo: $(INSTALLED)  ## train a VAE, a mixture and PPCA on digits; a table and pages of figures
	$(BIN)/ppl-vae demo

test: $(INSTALLED)  ## tests and doctests, on all cores
	$(BIN)/python -m pytest -q -n auto --dist worksteal $(ARGS)

lint: $(INSTALLED)  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## static types of the library
	$(BIN)/mypy

$(PEERS): benchmarks/peers.txt benchmarks/peers-pythae.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers-pythae.txt \
		|| echo "pythae cannot be installed: its sides are left out"
	@touch $@

bench: $(INSTALLED)  ## time and memory, beside Pyro, PyTorch by hand, NumPyro, pythae and scikit-learn
	@$(MAKE) --no-print-directory $(PEERS) || echo "NumPyro and pythae cannot be installed: their sides are left out"
	$(BIN)/python -m benchmarks.run $(ARGS)

mutants: $(INSTALLED)  ## seeded errors, each of which the tests must catch
	$(BIN)/python tests/mutants.py

experiments: $(INSTALLED)  ## every experiment in full, two at a time: hours
	for name in $(BOTH_CORES); do OMP_NUM_THREADS=1 $(BIN)/python -m experiments.$$name || exit 1; done
	ls experiments/[a-z]*.py | xargs -n 1 basename -s .py | grep -vx $(BOTH_CORES:%=-e %) \
		| OMP_NUM_THREADS=1 xargs -P 2 -I {} $(BIN)/python -m experiments.{}

clean:  ## remove the environments and all caches
	rm -rf .venv .venv-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
