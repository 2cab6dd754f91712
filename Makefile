# `make demo` shows Polyhead, `make test` checks it. Both set up what they need in .venv, from Python 3.11 or newer alone.

# Which Python to use, as in `make test PYTHON=python3.12`.
PYTHON ?= python3
# On Linux pip's default torch brings CUDA along, gigabytes of it. Name a package index that has CPU builds
# (`make setup TORCH_INDEX=https://...`, see pytorch.org) to do without.
TORCH_INDEX ?=
# Where `make serve` listens.
PORT ?= 50051
METRICS_PORT ?= 9464
# How long `make soak` goes on.
SECONDS ?= 600

BIN := .venv/bin
# Training and serving need one part of the installation; the checks need all of it.
RUNS := .venv/.runs
CHECKS := .venv/.checks
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
               --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-long test-compose bench soak lint types imports protos protos-check coverage format clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(CHECKS) ## install everything into .venv

demo: $(RUNS) ## train, export, serve and call three models; minutes at first, seconds from then on
	@$(BIN)/python scripts/demo.py

serve: $(RUNS) ## serve the models in models/ on 127.0.0.1 (PORT=50051 METRICS_PORT=9464)
	$(BIN)/polyhead serve --models models --port $(PORT) --metrics-port $(METRICS_PORT)

test: lint types imports protos-check coverage ## every check: lint, types, imports, protos, tests with coverage

test-long: $(CHECKS) ## the tests that take minutes, such as whole trainings
	$(PYTEST) -m long

test-compose: $(CHECKS) ## build the image and run docker-compose.yml for real; needs a Docker engine
	COMPOSE_REQUIRED=1 $(PYTEST) -m compose

bench: $(CHECKS) ## measure Polyhead beside llama.cpp, onnxruntime-genai and transformers; writes docs/benchmarks.md
	$(BIN)/python tests/perf/compare.py

soak: $(CHECKS) ## mixed load on a real server for SECONDS=600, and whether all is as before at the end
	$(BIN)/python -m tests.perf.soak --seconds $(SECONDS)

lint: $(CHECKS) ## ruff: mistakes and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(CHECKS) ## mypy, strict
	$(BIN)/mypy server client export tests scripts

imports: $(CHECKS) ## import-linter: who may import whom
	$(BIN)/lint-imports

protos: $(CHECKS) ## regenerate the code of protos/
	$(BIN)/python protos/generate.py

protos-check: $(CHECKS) ## is the generated code current?
	$(BIN)/python protos/generate.py --check

coverage: $(CHECKS) ## the tests, with coverage of server and client
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile --cov --cov-report=term --cov-fail-under=90

format: $(CHECKS) ## let ruff format and mend the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, caches and what the demo made
	rm -rf .venv runs models build dist .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# What is installed depends on these two files alone; the package itself is editable.
$(RUNS): pyproject.toml constraints.txt | .venv
	@echo "Installing into .venv: torch, onnxruntime, grpcio and what they need (some minutes)"
	@$(PIP_INSTALL) torch==2.13.0 --editable '.[export]'
	@touch $@

$(CHECKS): $(RUNS)
	@echo "Installing into .venv: ruff, mypy, pytest and other tools"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
