# One-word commands. `make` alone lists them.
#
# Set-up happens by itself: two stamps under $(VENV) say what is installed, for running and for testing. They depend on
# pyproject.toml and constraints.txt, and are written only after pip has succeeded, so an interrupted set-up is repeated.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TESTS ?= tests
SEED ?= 0
PARALLEL ?= 3

BIN := $(VENV)/bin
FOR_RUN := $(VENV)/.ready-to-run
FOR_TEST := $(VENV)/.ready-to-test
SHOWN := ^ *(Downloading|Using cached) .*[0-9]{2}\.[0-9] MB\)|^Installing collected|^ERROR|^error

.PHONY: help train test coverage lint campaign campaign-named dashboard clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 16
	@echo 'Settings: PYTHON=$(PYTHON) VENV=$(VENV) ARGS="training.max_steps=100 ..." (train) TESTS="tests/unit" (test)'

train: $(FOR_RUN) ## train a small GPT on real text; ARGS="..." passes overrides
	@exec $(BIN)/orchestrator train workload=gpt $(ARGS)

test: $(FOR_TEST) lint ## linters, then all tests, three at a time; TESTS="..." picks some
	@exec $(BIN)/python -m pytest -n $(PARALLEL) --durations=25 $(TESTS)

coverage: $(FOR_TEST) ## the same tests, and which lines they run; takes twice as long where they compute much
	@exec $(BIN)/python -m pytest --cov --cov-report=term $(TESTS)

lint: $(FOR_TEST) ## ruff, mypy (strict) and the layers
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

campaign: campaign-named $(FOR_TEST) ## long form of a bar: NAME=... N=... SEED=0, goes on where it stopped
	@exec $(BIN)/python benchmarks/campaign_$(NAME).py --n $(N) --seed $(SEED) $(ARGS)

campaign-named:
	@test -n "$(NAME)" -a -n "$(N)" || { echo "Say which campaign and how often: make campaign NAME=... N=... [SEED=0]" >&2; exit 2; }
	@test -f "benchmarks/campaign_$(NAME).py" || { \
	  echo "There is no campaign '$(NAME)'. There are:" $$(cd benchmarks && ls campaign_*.py 2>/dev/null | sed -E 's/campaign_(.*)\.py/\1/') >&2; exit 2; }

dashboard: $(FOR_RUN) ## open MLflow on the runs of the local cluster, http://127.0.0.1:5000
	@home="$${ORCHESTRATOR_HOME:-$$HOME/.orchestrator}/mlflow"; mkdir -p "$$home"; \
	echo "starting MLflow on http://127.0.0.1:5000 (up to half a minute; Ctrl-C ends it) ..."; \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true exec $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
	  --backend-store-uri "sqlite:///$$home/mlflow.db" --default-artifact-root "$$home/artifacts" $(ARGS)

clean: ## remove the environment and what tools cached here; jobs and their data stay
	@rm -rf "$(VENV)" .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* build dist

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "'$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); Python 3.11 or newer is needed. Name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@"$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; \
	  echo "'$(PYTHON)' cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

# $(1): what pip installs. Everything it says is kept; the large downloads and what goes wrong are shown.
define install
	@echo "setting up $(VENV) (once, about 3 minutes, most of it downloads) ..."
	@rm -f $(FOR_RUN) $(FOR_TEST)
	@start=$$SECONDS; \
	$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check -c constraints.txt -e "$(1)" 2>&1 | tee $(VENV)/install.log \
	  | { grep --line-buffered -E '$(SHOWN)' || true; } | cut -c 1-160 \
	  || { echo "pip failed; its last words (all of them: $(VENV)/install.log):" >&2; tail -n 20 $(VENV)/install.log >&2; exit 1; }; \
	echo "set up in $$((SECONDS - start)) s"
endef

$(FOR_RUN): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)
	@touch $(FOR_RUN)

$(FOR_TEST): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[test])
	@touch $(FOR_RUN) $(FOR_TEST)
