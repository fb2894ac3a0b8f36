# make train    sets up everything, then records, trains and evaluates the quickstart
# make test     sets up everything, then runs the default tests;  make test-all  the slow ones too;  make lint
# make leaderboard  ours and lerobot's policies on the same demonstrations for the same time; 2.5 hours, can be stopped
# make test-faults  kills, fills disks, damages files, and prints a table: fault -> outcome
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART := experiment_training/quickstart/pick_place.yaml
RUN := runs/quickstart/policy

# Nothing here needs the network once the packages are installed.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1

.PHONY: help train test test-all test-faults leaderboard lint clean-runs
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

train: $(VENV)/.train
	$(BIN)/python -m experiment_training.quickstart.record
	$(BIN)/python trainer/offline_trainer.py --train_config $(QUICKSTART) --resume auto
	$(BIN)/python -m trainer.evaluate $(RUN)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow --timeout 900 --ignore tests/benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --timeout 900 tests/benchmarks  # alone: they measure time

test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest -m fault --fault-table

leaderboard: $(VENV)/.dev
	$(BIN)/python -m experiment_training.leaderboard

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

clean-runs:
	rm -rf runs/quickstart

# Set-up. uv is used where pip can get it and where it can reach the packages; else pip itself, which then needs a C
# compiler and kernel headers for the one package that overrides.txt leaves out.
define install
	@echo "setting up $(VENV) with the extras $(1) (once; the packages take about 9 GB)"
	@$(BIN)/python -m pip install --quiet uv || true
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --overrides overrides.txt -e ".[$(1)]" 2>$(VENV)/uv.log \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(1)]"
	@touch $@
endef

$(VENV)/.train: pyproject.toml constraints.txt overrides.txt | $(BIN)/python
	$(call install,train$(comma)sim)

$(VENV)/.dev: pyproject.toml constraints.txt overrides.txt | $(BIN)/python
	$(call install,train$(comma)sim$(comma)hf$(comma)wandb$(comma)tensorboard$(comma)dev)

comma := ,

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is too old: Python 3.11 or later is needed (make PYTHON=/path/to/python3.11)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "this Python cannot make virtual environments: Debian packs that apart, as python3-venv"; \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qqy python3-venv; } \
	  || { echo "install it with: sudo apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
