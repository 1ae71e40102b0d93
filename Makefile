# Everything a developer types. `make demo` and `make test` need nothing typed before them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
LOCK := $(BIN)/pip-compile --quiet --strip-extras --no-emit-options \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host
export CUSTOM_COMPILE_COMMAND := make lock

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Catch QEMU running a bottom half on the wrong thread, live (about a minute)
	@scripts/setup.sh demo
	@$(BIN)/qtrace lab vcpu-poll

.PHONY: test
test: venv ## Every test that shows one thing once (under 10 minutes)
	@scripts/qemus.sh || [ -z "$${QTRACE_REQUIRE:-}" ] # elsewhere its tests skip and say so
	@$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Folders of tests of parts that need more than a QEMU (a browser, a cluster, packages); what one
# needs is installed by its setup.sh.
HEAVY := tests/pictures tests/fleet tests/monitor

.PHONY: check-parts
check-parts: venv ## The tests of the heavy parts (under 25 minutes)
	@[ -n "$(HEAVY)" ] || echo "check-parts: no part has heavy tests of its own yet"
	@for part in $(HEAVY); do [ ! -e $$part/setup.sh ] || $$part/setup.sh; $(BIN)/pytest $$part; done

.PHONY: soak
soak: export QTRACE_QEMU11 ?= $(CURDIR)/.cache/qemus/newest/bin/qemu-system-x86_64
soak: venv qemus ## The whole matrix and the large counts (hours)
	@$(BIN)/pytest -m soak --timeout=0
	@tests/fleet/setup.sh
	@$(BIN)/pytest -m soak --timeout=0 tests/fleet

.PHONY: bench
bench: venv qemus ## Measure against what one would use instead
	@$(BIN)/python -m benchmarks

.PHONY: samples
samples: venv qemus ## Record analysis/samples and run the notebooks again (labels.toml says what each shows)
	@$(BIN)/python -m scripts.samples
	@$(BIN)/python -m scripts.notebooks

.PHONY: lint
lint: venv ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p qtrace -p benchmarks -p scripts
	$(BIN)/lint-imports

.PHONY: format
format: venv ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: qemus
qemus: venv ## Unpack every other QEMU that tests know below .cache/ (tests/builds.py)
	@scripts/qemus.sh all

.PHONY: kernels
kernels: ## Unpack Debian's kernels 6.1 and 6.12 below .cache/ for the soak's guests
	@scripts/kernels.sh

.PHONY: venv
venv: ## Install what is missing and make .venv (the other targets do it by themselves)
	@scripts/setup.sh

.PHONY: probes
probes: venv ## Compile probes/ into probes/prebuilt.json, after a change of its sources
	@$(BIN)/python -m scripts.probe_image

.PHONY: lock
lock: venv ## Pin the newest versions of the Python dependencies
	$(LOCK) --upgrade --output-file requirements.txt pyproject.toml
	$(LOCK) --upgrade --extra notebook --extra perfetto --extra monitor --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml
	$(LOCK) --upgrade --output-file tests/fleet/requirements.txt tests/fleet/requirements.in

.PHONY: wheel
wheel: venv ## Build the wheel and the source archive into dist/
	@$(BIN)/python -m build --no-isolation --outdir dist

.PHONY: clean
clean: ## Remove what the build and the tools left (not .venv, not .cache)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -path ./.venv -prune -o -path ./.cache -prune -o -name __pycache__ -type d -exec rm -rf {} +
