# Everything is set up on first use, in .venv; what is installed is said on stderr, so that
# stdout belongs to the command. All it takes is make and Python 3.11 or newer.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test fuzz sqlmap faults faults-check skew soak bench check format install lock clean
MAKEFLAGS += --no-print-directory

ARGS ?=
PYTHONS := python3.13 python3.12 python3.11 python3 python

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command 'make lock'

help:  ## Say what there is to make
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## */\t/' | expand -t 15

run: .venv/run.stamp  ## Start the product on this machine: make run ARGS="--port 8080"
	@exec $(BIN)/kaixu up $(ARGS)

test: .venv/dev.stamp  ## Run the tests: make test ARGS="-k journal"
	@$(BIN)/python -m pytest $(ARGS)

bench: .venv/dev.stamp  ## Measure it beside its peers: make bench ARGS="--quick --systems ours,nginx"
	@$(BIN)/python -m benchmarks $(ARGS)

fuzz: .venv/dev.stamp  ## Send 100,000 mutated requests through nginx and HAProxy: takes a while
	@$(BIN)/python -m pytest tests/fuzz -m slow -s $(ARGS)

sqlmap: .venv/dev.stamp  ## Let sqlmap (apt install sqlmap) look for a way through each route
	@KAIXU_REQUIRE=sqlmap $(BIN)/python -m pytest -m slow tests/control_plane/web/test_sqlmap.py -k "not pg15" $(ARGS)

faults: .venv/dev.stamp  ## Break the product in every way: make faults ARGS="--quick --runs 20"
	@$(BIN)/python -m tests.faults $(ARGS)

faults-check: .venv/dev.stamp  ## Run five of the recorded faults again
	@$(BIN)/python -m tests.faults --check 5

skew: .venv/dev.stamp  ## Run the release before beside this one: KAIXU_SKEW_FROM=COMMIT make skew
	@$(BIN)/python -m tests.faults --fault version-skew $(ARGS)

soak: .venv/dev.stamp  ## Half an hour of mixed load: memory stays flat; make soak ARGS="--minutes 5"
	@$(BIN)/python -m tests.faults.soak $(ARGS)

check: .venv/dev.stamp  ## Formatting, lint, types, and the direction of imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/dev.stamp  ## Format the code and mend what lint can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

install: .venv/dev.stamp  ## Set up .venv with all that development takes

lock: .venv/dev.stamp  ## Pin the dependencies anew: make lock ARGS=--upgrade
	$(UV_COMPILE) $(ARGS) pyproject.toml --group build --output-file requirements.lock
	$(UV_COMPILE) $(ARGS) pyproject.toml --group dev --constraint requirements.lock \
		--output-file requirements-dev.lock

clean:  ## Remove .venv and all that tools have left behind
	rm -rf .venv .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
		.ruff_cache build dist htmlcov benchmarks/.work tests/journeys/node/node_modules
	find benchmarks control_plane gateway tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last: what was interrupted, or whose lock has changed, is installed again.

.venv/run.stamp: requirements.lock pyproject.toml | $(BIN)/pip
	@echo 'Installing the packages of requirements.lock into .venv ...' >&2
	@$(PIP_INSTALL) --require-hashes --requirement requirements.lock >&2
	@$(PIP_INSTALL) --no-deps --no-build-isolation --no-index --editable . >&2
	@touch $@

.venv/dev.stamp: requirements-dev.lock .venv/run.stamp
	@echo 'Installing the packages of requirements-dev.lock into .venv ...' >&2
	@$(PIP_INSTALL) --require-hashes --requirement requirements-dev.lock >&2
	@touch $@

# Debian keeps the pip of new environments in a package of its own; another pip can stand in.
$(BIN)/pip:
	@for candidate in $(PYTHONS); do \
		"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "Creating .venv with $$("$$candidate" --version) ..." >&2; \
		if "$$candidate" -c 'import ensurepip' 2>/dev/null; then \
			exec "$$candidate" -m venv --clear .venv >&2; \
		fi; \
		"$$candidate" -m venv --clear --without-pip .venv >&2 || exit 1; \
		for pip in "$$candidate -m pip" pip3 pip; do \
			$$pip --python .venv/bin/python install --quiet --disable-pip-version-check --no-input \
				--require-hashes --requirement requirements.lock >&2 && exit 0; \
		done; \
		echo "$$candidate cannot install packages: install its venv module" \
			"(Debian, Ubuntu: apt install python3-venv) and run this again." >&2; \
		exit 1; \
	done; \
	echo 'Python 3.11 or newer is needed, and none is on the PATH: install it' \
		'(Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python)' \
		'and run this again.' >&2; \
	exit 1
