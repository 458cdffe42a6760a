PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA_DIR ?= data
BENCH = -m benchmarks.run --data-dir $(DATA_DIR)
REPRODUCE = $(BIN)/python -m benchmarks.reproduce --data-dir $(DATA_DIR)
PEERS := .venv-peers
ENGINES := tests/engines
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

targets = sed -nE 's/^([a-z-]+):.*$(1) (.*)/\1|\2/p' Makefile | awk -F '|' '{printf "  %-17s %s\n", $$1, $$2}'

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-faults test-distributed test-engines compat fuzz lint format type bench bench-quick reproduce reproduce-all docs clean

help: ##+ List the targets.
	@$(call targets,##)
	@echo; echo 'More:'
	@$(call targets,##\+)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "msh needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

setup: $(READY) ##+ Create .venv with everything msh and its tests need: about a minute.

demo: $(READY) ## Train four bundled tasks into one network: about 30 s. Results are in outputs/sequential.
	$(BIN)/python train.py +experiment=sequential

test: $(READY) ## Run the tests, except slow ones: about 12 minutes on 2 cores.
	$(PYTEST)

test-all: $(READY) ## Run all tests, except those that kill processes or start servers.
	$(PYTEST) -m 'not faults and not engines'

test-faults: $(READY) ##+ Kill processes, fill the disk, lose a rank or a job: nothing may be lost.
	$(BIN)/python -m pytest -n 2 --dist load -m '' tests/integration/test_faults.py tests/integration/test_resume.py

test-distributed: $(READY) ##+ Compare two processes with one, and dry-run eight, for every curriculum, with DDP and FSDP.
	$(PYTEST) -m '' tests/integration/test_distributed.py tests/integration/test_ranks.py \
		tests/integration/test_eight_ranks.py tests/unit/training/test_reduced.py \
		tests/unit/training/test_sharding.py

test-engines: $(READY) ##+ Run on real SLURM, Ray, MLflow, PostgreSQL; installs them.
	@dpkg --status $$(cat $(ENGINES)/packages.txt) >/dev/null 2>&1 || if [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=400 install -y --no-install-recommends $$(cat $(ENGINES)/packages.txt); \
	else echo "tests that need these packages are skipped: sudo apt-get install" $$(cat $(ENGINES)/packages.txt); fi
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt \
		--override $(ENGINES)/overrides.txt --requirement $(ENGINES)/requirements.txt
	$(BIN)/python -m pytest -m engines $(ENGINES)

compat: $(READY) ##+ Check 42 architectures; writes docs/compatibility.md: about 5 minutes.
	cd tests && ../$(BIN)/python -m compat.write

fuzz: $(READY) ##+ Read 10,000 hostile files: each must be read or refused by name, without harm.
	cd tests && ../$(BIN)/python -m fuzz --inputs 10000

lint: $(READY) ## Check style and formatting with ruff.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## Format the code and fix style problems with ruff.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY) ## Check types with mypy.
	$(BIN)/mypy

# Other libraries, in an environment of their own; beyondml without its dependencies (TensorFlow), which are not used.
$(PEERS)/.ready: $(READY) benchmarks/requirements.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(PEERS)
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --constraint constraints.txt --compile-bytecode \
		--editable '.[dev,onnx]' --requirement benchmarks/requirements.txt
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --no-deps beyondml==0.1.7
	@touch $(PEERS)/.ready

bench: $(PEERS)/.ready ## Measure costs against the dense network; writes docs/performance.md (DATA_DIR=DIR uses MNIST).
	$(PEERS)/bin/python $(BENCH)

bench-quick: $(READY) ##+ Measure fewer cases in two minutes; writes outputs/benchmarks/quick.
	$(BIN)/python $(BENCH) --quick

bench-gpu: $(READY) ##+ Measure steps, inference and memory on a GPU; writes outputs/benchmarks/gpu: about 10 minutes.
	$(BIN)/python $(BENCH) --device cuda --only gpu --output-dir outputs/benchmarks/gpu

reproduce: $(READY) ##+ Repeat the paper's experiments under three hours each; writes docs/results.md (DATA_DIR=DIR).
	$(REPRODUCE)

reproduce-all: $(READY) ##+ Repeat all of them; finished runs are skipped.
	$(REPRODUCE) --all

docs: $(READY) ## Write the reference for the public classes and functions to build/docs.
	$(BIN)/python -m pydoc -w msh.subnetworks.network msh.subnetworks.allocation msh.subnetworks.pruning
	@mkdir -p build/docs && mv msh.*.html build/docs/

clean: ## Remove .venv, caches and builds; run folders stay.
	rm -rf $(VENV) $(PEERS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
