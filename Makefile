# Two commands set everything up: `make run` and `make test`. Both need only python3 and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXAMPLE ?= examples/quickstart
JOBS ?= 2
TESTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help run test coverage test-clients test-fork quality-check format bench bench-peers bench-report clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

# A stamp is remade when what it was made from changes; an interrupted install leaves no stamp.
$(VENV)/.stamp: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing flashmesh into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp
	@echo "Installing what the tests need into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

run: $(VENV)/.stamp ## Install into .venv and serve the example project
	@exec $(BIN)/flash run $(EXAMPLE)

# Compiled once here: where Python may not write bytecode (PYTHONDONTWRITEBYTECODE), each of the thousand processes that
# the tests start would compile all it imports.
test: $(VENV)/.stamp-dev ## Install into .venv and run the tests
	@$(BIN)/python -m compileall -q src
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(TESTS)

# Apart from `make test`, as the processes that the tests start take twice as long. From 3.12 on the interpreter itself
# tells which lines run.
coverage: $(VENV)/.stamp-dev ## Run the tests and check how much of the code they reach
	@$(BIN)/python -m compileall -q src
	@rm -f .coverage .coverage.*
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	  $(BIN)/coverage run -m pytest --numprocesses $(JOBS) --dist loadfile
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-fork: ## Fork workers with the packages people import and rewrite docs/fork.md (large downloads)
	@test -x .venv-fork/bin/python || $(PYTHON) -m venv .venv-fork
	@.venv-fork/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -r tests/forks/requirements.txt
	.venv-fork/bin/python -m pytest tests/forks -m forks --timeout 600

test-clients: ## Ask a server with RunPod's own SDK (downloads)
	@test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -r tests/acceptance/clients.txt
	.venv-clients/bin/python -m pytest tests/acceptance -m clients

quality-check: $(VENV)/.stamp-dev ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.stamp-dev ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.stamp-dev ## Measure each path next to its floor and print ratios
	$(BIN)/python -m benchmarks .bench/bench.json

bench-peers: $(VENV)/.stamp-dev ## The same job on what else one could pick, each in a throw-away environment (downloads)
	$(BIN)/python -m benchmarks.peers --write .bench/peers.json $(PEERS)

bench-report: $(VENV)/.stamp-dev ## Account for each microsecond of a call; put all that was measured into docs/performance.md
	$(BIN)/python -m benchmarks.account .bench/account.json
	$(BIN)/python -m benchmarks.report

clean: ## Remove what the commands above made
	rm -rf .bench .venv .venv-clients .venv-fork .venv-second .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
