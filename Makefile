# What a developer does with the project. `make` alone lists it.

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin

# The launch configuration; the Dockerfile has the same, and a test holds the two together.
# A connection is kept longer than a load balancer keeps it (60 s), so that it is never closed under a request.
UVICORN := uvicorn app.main:app --timeout-keep-alive 75 --timeout-graceful-shutdown 20

# The system's own, or else one that is unpacked here: to install the package would start a server.
NGINX := $(or $(shell PATH="$$PATH:/usr/sbin" command -v nginx),.nginx/usr/sbin/nginx)

# A process for each processor, each with its own Postgres; more than four would ask much of the machine's memory.
PARALLEL := --numprocesses logical --maxprocesses 4

LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade --custom-compile-command "make lock"

.PHONY: help install run status test test-slow test-proxy fuzz clients bench lint types drift format lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' Makefile

install: .venv/installed ## Make .venv with everything that is locked

.venv/installed: requirements-dev.lock
.venv-bench/installed: bench/requirements.lock
.venv/installed .venv-bench/installed:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

run: install ## Migrate the database and serve on PORT (8000); DATABASE_URL names another than database.db
	$(BIN)/alembic upgrade head
	exec $(BIN)/$(UVICORN) --port $(PORT)

status: install ## Show which revision the database has, what an upgrade would do, and what that locks
	@$(BIN)/python -m migrations.status

test: install ## Test on SQLite and on a Postgres that the tests start
	$(BIN)/pytest $(PARALLEL)

test-slow: install ## Run the tests that `make test` leaves out
	$(BIN)/pytest -m slow $(PARALLEL)

test-proxy: install $(NGINX) ## Test behind nginx, set up as docs/nginx.conf has it
	$(BIN)/pytest -m proxy

.nginx/usr/sbin/nginx:
	@mkdir -p .nginx && cd .nginx && \
	{ apt-get -qq download nginx || { apt-get -qq update && apt-get -qq download nginx; }; } && \
	dpkg -x nginx_*.deb . && usr/sbin/nginx -v || \
	{ rm -rf ../.nginx; echo "nginx is needed, and can't be got here: install it (Debian: apt-get install nginx)." >&2; exit 1; }

fuzz: install ## Send more than 20,000 requests that nobody has thought of to each database, others each time
	FUZZ_EXAMPLES=1000 FUZZ_SEED=random $(BIN)/pytest -s tests/test_fuzz.py

clients: install ## Generate clients in Python and TypeScript, check their types and let them talk; this needs Node
	$(BIN)/pytest -m node

bench: .venv-bench/installed ## Measure the service beside others that do the same, with wrk; this takes half an hour
	@command -v wrk > /dev/null || { echo "wrk is needed (Debian: apt-get install wrk)." >&2; exit 1; }
	.venv-bench/bin/python -m bench.compare

lint: install ## Check style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install ## Check types
	$(BIN)/mypy

drift: install ## Check that models and migrations agree, on a new database
	@folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT && export DATABASE_URL="sqlite:///$$folder/drift.db" && \
	$(BIN)/alembic upgrade head && $(BIN)/alembic check

format: install ## Put the code in its form
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

lock: install ## Lock the newest versions of all dependencies
	$(LOCK) --output-file requirements.lock pyproject.toml
	$(LOCK) --output-file requirements-dev.lock --constraints requirements.lock --group dev pyproject.toml
	$(LOCK) --output-file tests/clients/requirements.lock --group clients
	$(LOCK) --output-file bench/requirements.lock --constraints requirements.lock --group bench pyproject.toml
	cd tests/clients && npm update --package-lock-only --no-audit --no-fund  # this one needs Node

clean: ## Remove what the other targets made
	rm -rf .venv .venv-bench .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis .nginx database.db database.db-shm database.db-wal database.db.*.bak
