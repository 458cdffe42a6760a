PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA_DIR ?= data
BENCH = $(BIN)/python -m benchmarks.run --data-dir $(DATA_DIR)
REPRODUCE = $(BIN)/python -m benchmarks.reproduce --data-dir $(DATA_DIR)
PEERS = $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --requirement benchmarks/requirements.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-faults test-distributed fuzz lint format type bench bench-quick reproduce reproduce-all docs clean

help: ## List what make can do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "msh needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

setup: $(READY) ## Make an environment in .venv with everything in it

demo: $(READY) ## Four unrelated tasks into one network, one after another
	$(BIN)/python train.py +experiment=sequential

test: $(READY) ## The tests, but for the slow ones
	$(PYTEST)

test-all: $(READY) ## All tests
	$(PYTEST) -m 'not faults'

test-faults: $(READY) ## Kill processes at 50 moments, fill the disk, lose a rank or a job: nothing is lost
	$(BIN)/python -m pytest -n 2 --dist load -m '' tests/integration/test_faults.py tests/integration/test_resume.py

test-distributed: $(READY) ## Two processes do what one does: every curriculum, with DDP and with shards
	$(PYTEST) -m '' tests/integration/test_distributed.py tests/integration/test_ranks.py tests/unit/training/test_reduced.py \
		tests/unit/training/test_sharding.py

fuzz: $(READY) ## Read 10,000 hostile files, of all kinds: none may do harm, each is read or refused by name
	cd tests && ../$(BIN)/python -m fuzz --inputs 10000

lint: $(READY) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## Format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY) ## Check types
	$(BIN)/mypy

bench: $(READY) ## Measure all costs against the dense network's: docs/performance.md (DATA_DIR=DIR: with MNIST)
	-$(PEERS)
	$(BENCH)

bench-quick: $(READY) ## The same in two minutes, with fewer cases, into outputs/benchmarks/quick
	-$(PEERS)
	$(BENCH) --quick

reproduce: $(READY) ## The paper's experiments and benchmarks that take under three hours: docs/results.md (DATA_DIR=DIR)
	$(REPRODUCE)

reproduce-all: $(READY) ## All of them; finished runs are not done again
	$(REPRODUCE) --all

docs: $(READY) ## Write the reference of the public classes and functions to build/docs
	$(BIN)/python -m pydoc -w msh.subnetworks.network msh.subnetworks.allocation msh.subnetworks.pruning
	@mkdir -p build/docs && mv msh.*.html build/docs/

clean: ## Remove the environment, caches and builds; run folders stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
