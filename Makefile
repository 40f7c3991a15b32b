# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install what they need and may be run again.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Whole files, in the order that tests/conftest.py gives them: the longest first.
SPREAD := --numprocesses 3 --dist loadfile --no-loadscope-reorder
export MEDLEY_DATA ?= ../shared/data
# Images often set it; then each of the processes that tests start, hundreds, compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format generate examples samples bench matrix soak stage-up stage-down clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing medley and its tools into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$$(sed -n 's/^uv==//p' constraints.txt)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## Build a cluster, serve a model on spot, take nodes away, show that no stream broke (KEEP=1 leaves it; STAGE=existing: your cluster)
	@$(BIN)/python -m e2e.demo

test: $(VENV)/.installed lint  ## Everything: lint, unit and property tests, real API server, real vLLM, the stage
	@$(BIN)/python -m e2e.prepare
	@$(BIN)/python -m pytest tests -m "not vllm" $(SPREAD) --durations 5
	@$(BIN)/python -m pytest tests e2e/test_stage.py -m "vllm or stage" --numprocesses 2 --dist loadfile --durations 5
	@test $$(id -u) != 0 || $(BIN)/python -m pytest e2e/test_service.py --durations 10

test-fast: $(VENV)/.installed  ## Unit and property tests alone: no API server, no vLLM, no root
	@$(BIN)/python -m pytest tests -m "not vllm and not apiserver" $(SPREAD)

lint: $(VENV)/.installed  ## Style, types, layers, spelling, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/codespell operator tests e2e bench docs examples charts README.md CONTRIBUTING.md CHANGELOG.md Makefile
	@$(BIN)/python -m medley.api.crd --check

format: $(VENV)/.installed  ## Format and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

generate: $(VENV)/.installed  ## Write the CRDs from the models
	@$(BIN)/python -m medley.api.crd

# The command stands in each file's first line; a test runs it and compares.
examples: $(VENV)/.installed  ## Estimate the profiles of the examples again
	@for file in examples/performanceprofile*.yaml; do $(BIN)/$$(sed -n '1s/^# //p' $$file) --out $$file >/dev/null; done

samples: $(VENV)/.installed  ## Print again what the documents show of the commands
	@$(BIN)/python -m tests.docs.samples --slow

matrix: $(VENV)/.installed  ## Carry streams between engines of all sizes and compare every token (12 minutes): build/matrix.json
	@$(BIN)/python -m e2e.prepare
	@$(BIN)/python -m tests.engine.kv.matrix

soak: $(VENV)/.installed  ## Interrupt streams N times in all (N=1000, ENGINE=vllm|stub); goes on where it was stopped: build/soak.json
	@$(BIN)/python -m e2e.soak --interruptions $(or $(N),1000) --engine $(or $(ENGINE),vllm)

bench: $(VENV)/.installed  ## Measure (ONLY=allocator|router|...): a table, and build/bench.json
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY))

stage-up: $(VENV)/.installed  ## Start the real cluster on this machine
	@$(BIN)/python -m e2e.stage up

stage-down: $(VENV)/.installed  ## Take it away, leaving nothing behind
	@$(BIN)/python -m e2e.stage down

clean:  ## Remove what was built here (the cache stays)
	rm -rf build dist $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
