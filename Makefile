# Two commands do everything: `make demo` and `make test`. Both set themselves up in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-run
SHELL := /bin/bash
.DELETE_ON_ERROR:

# With an NVIDIA GPU pip may pick its CUDA build of torch; without one the pin keeps 4 GB of CUDA packages away.
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
PINS := -c constraints.txt $(if $(GPU),,-c constraints-cpu.txt)

.PHONY: help setup demo test test-slow test-gpu lint docs clean
help:
	@echo "make demo       the whole pipeline on made images, a few minutes on two cores"
	@echo "make test       lint, types and the CPU test suite"
	@echo "make test-slow  the tests that need minutes or real data (MASKSHARDS_TEST_DATA)"
	@echo "make test-gpu   the tests that need a CUDA device"
	@echo "make docs       the pages of docs/ and the reference as a site in site/; a broken link fails"
	@echo "make setup      only the environment in .venv"

setup: $(READY)
$(READY): pyproject.toml constraints.txt constraints-cpu.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"maskshards needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}. Say: make setup PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian or Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[dev]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread a process: the suite runs on as many processes as there are cores, and oversubscribing them is slower.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

test-slow: setup
	$(BIN)/pytest -m "slow and not gpu"

# With what is installed: a machine with a GPU often has no network, and no environment of ours.
test-gpu:
	PYTHONPATH=src $(if $(wildcard $(BIN)/pytest),$(BIN)/python,$(PYTHON)) -m pytest -m "gpu and not slow" -W default

# The banner is an advertisement of the theme's.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

# Every line below is an ordinary command of the README; make prints each before it runs. Torch gets one thread: two
# that wait for each other by spinning are many times slower as soon as anything else runs on the machine. So training
# takes two processes of one thread: the same steps, each process with half of the images.
demo: export OMP_NUM_THREADS := 1
demo: setup
	rm -rf $(DEMO)
	$(BIN)/maskshards scenes --out $(DEMO)/scenes
	$(BIN)/maskshards build --dataset folder --root $(DEMO)/scenes --classes $(DEMO)/scenes/classes.txt --reduce-zero-label --samples-per-shard 32 --out $(DEMO)/shards
	$(BIN)/maskshards verify $(DEMO)/shards --against $(DEMO)/scenes
	$(BIN)/maskshards info $(DEMO)/shards
	$(BIN)/torchrun --nproc-per-node 2 --no-python $(BIN)/maskshards train config=configs/demo.yaml bs=4 n_gpus=2 datasets.root=$(DEMO)/shards output_dir=$(DEMO)/train
	$(BIN)/maskshards train config=configs/demo.yaml datasets.root=$(DEMO)/shards output_dir=$(DEMO)/evaluation load_from=$(DEMO)/train/model_final.pth
	$(BIN)/maskshards predict checkpoint=$(DEMO)/train/model_final.pth inputs=$(DEMO)/scenes/images/validation output_dir=$(DEMO)/pictures
	@$(BIN)/python examples/demo_summary.py $(DEMO)

clean:
	rm -rf $(DEMO) site .pytest_cache .mypy_cache .ruff_cache build *.egg-info
