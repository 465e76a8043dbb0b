# Everything a newcomer needs. `make help` lists it. Override: make demo PYTHON=python3.12 TORCH_ARGS="--index-url ..."
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off -c infra/constraints.txt
# pip's two hundred lines become one that moves; warnings and errors still come through on standard error.
ONE_LINE := | awk '/^(Collecting|Downloading|Installing|Building)/ {printf "\r\033[K    %.70s", $$0; fflush()} END {printf "\r\033[K"}'
# A GPU host's own Python: torch with CUDA and Triton are its, and nothing is installed for us.
GPU_PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PEERS := peers/llama
PEER_PACKAGES := llama-cpp-python==0.3.36 gguf==0.19.0 numpy==2.4.6
INPUTS := pyproject.toml infra/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo serve test coverage test-clients check fix train-demo gpu bench-runtime bench-gateway bench-tiers bench-peers clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## the main job, end to end, in a temporary folder (under a minute after the install)
	@$(BIN)/lorikeet demo

serve: $(VENV)/.runtime ## gateway + runtime on 127.0.0.1:8787 with the demo model and a development token
	@$(BIN)/lorikeet serve --dev

test: $(VENV)/.dev ## the whole test suite, in two processes (TESTS="tests/kernels -n 0" for a part, in one)
	@$(BIN)/python -m pytest -n 2 $(TESTS)

coverage: $(VENV)/.dev ## the same with a report of what it reaches: tracing doubles the time of what computes in Python
	@$(BIN)/python -m pytest --cov --cov-report=term

test-clients: $(VENV)/.dev ## real clients (wrangler, SDKs, ...) and schemathesis against a served demo; writes docs/compatibility.md
	@WRITE_TABLE=1 $(BIN)/python -m pytest tests/clients

check: $(VENV)/.dev ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fix: $(VENV)/.dev ## let ruff mend what it can
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

train-demo: $(VENV)/.dev ## make the demo base and its adapters anew (about six minutes on two cores)
	@$(BIN)/python -m infra.demo.train

gpu: ## on a GPU host: tests and benchmarks there, nine minutes (STEP="tests kernels" for some, GPU="--minutes 4")
	@$(GPU_PYTHON) -m infra.bench.gpu $(addprefix --step ,$(STEP)) $(GPU)

bench-runtime: $(VENV)/.dev ## our runtime beside transformers + PEFT and llama.cpp (BENCH="--quick" for a short one)
	@$(BIN)/python -m infra.bench.runtime $(BENCH)

bench-peers: ## build llama.cpp for bench-runtime, in peers/ (about seven minutes; needs a C++ compiler)
	@$(PEERS)/bin/python -c "import gguf, llama_cpp" 2>/dev/null || { echo "Building llama.cpp in $(PEERS) (about seven minutes)"; \
		$(PYTHON) -m venv $(PEERS) && $(PEERS)/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
		$(PEER_PACKAGES) $(ONE_LINE); }

bench-gateway: $(VENV)/.dev ## the gateway on a mock runtime: CPU per request and per stream, a thousand streams (needs wrk)
	@$(BIN)/python -m infra.bench.gateway $(BENCH)

bench-tiers: $(VENV)/.dev ## adapter tiers beside plain transfers, and 2,000 adapters on the demo base (BENCH="--quick")
	@$(BIN)/python -m infra.bench.tiers $(BENCH)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .clients .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*

$(VENV)/.torch: $(INPUTS)
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed: install it, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) (the first time takes a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@echo "  torch 2.13.0 ..."
	@$(PIP) $(TORCH_ARGS) torch==2.13.0 $(ONE_LINE)
	@touch $@

$(VENV)/.runtime: $(VENV)/.torch
	@echo "  lorikeet ..."
	@$(PIP) -e '.[runtime]' $(ONE_LINE)
	@echo "  kernels for this processor ..."
	@$(BIN)/python -m kernels.cpu bfloat16 > /dev/null
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "  development tools ..."
	@$(PIP) -e '.[dev]' $(ONE_LINE)
	@echo "  kernels that only the tests use ..."
	@$(BIN)/python -m kernels.cpu float32 float16 float32-of-bfloat16 float32-of-float16 > /dev/null
	@touch $@
