# The commands of a developer. `make` lists them.

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin

# The launch configuration. The Dockerfile has the same; a test compares them.
# Keep-alive is longer than that of a load balancer (60 s), so that the server never closes a connection first.
UVICORN := uvicorn app.main:app --http app.protocol:StrictHTTPProtocol --ws none --timeout-keep-alive 75 --timeout-graceful-shutdown 20

# The installed nginx, or one that is unpacked here: installing the package would start a server.
NGINX := $(or $(shell PATH="$$PATH:/usr/sbin" command -v nginx),.nginx/usr/sbin/nginx)

# PgBouncer likewise, with the libraries that only it needs. TEST_PGBOUNCER names another executable.
PGBOUNCER := $(or $(TEST_PGBOUNCER),$(shell PATH="$$PATH:/usr/sbin" command -v pgbouncer),.pgbouncer/usr/sbin/pgbouncer)

# The tests that run through PgBouncer too.
CONTRACT := batch contract export heroes idempotency pooled_session

# Each process has its own Postgres, and waits for it at times: three keep two CPUs busy. Each starts with a run of
# neighbouring tests, so that fixtures of a module or of a kind of database are mostly created once.
PARALLEL := --numprocesses 3 --dist worksteal

# The files that have a marker: each process takes six seconds of CPU to collect all of them.
MARKED = $$(grep -rl 'mark\.$(1)' tests --include='test_*.py')

# The tests start hundreds of processes, and without bytecode each compiles the service and the migrations again.
test coverage test-slow test-chaos test-proxy test-pooler test-replication test-citus test-browser: export PYTHONDONTWRITEBYTECODE :=

LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --upgrade --custom-compile-command "make lock"

.PHONY: help install run status token distribute test coverage test-slow test-chaos test-proxy test-pooler test-replication test-citus test-browser fuzz clients bench lint types drift audit sbom format lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-18s%s\n", $$1, $$2 }' Makefile

install: .venv/installed ## Create .venv with the locked dependencies

.venv/installed: requirements-dev.lock
.venv-bench/installed: bench/requirements.lock
.venv/installed .venv-bench/installed:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

run: install ## Migrate the database (DATABASE_URL, default database.db) and serve it on PORT (default 8000)
	$(BIN)/alembic upgrade head
	exec $(BIN)/$(UVICORN) --port $(PORT)

status: install ## Show the current revision, the pending ones, and what they lock
	@$(BIN)/python -m migrations.status

token: install ## Print a new bearer token, and its entry for TOKENS or TOKENS_FILE (NAME=billing SCOPES=read+write)
	@$(BIN)/python -m app.security $(NAME) $(SCOPES)

distribute: install ## Let Citus distribute the tables of a migrated database over its workers (MIGRATION_DATABASE_URL, or DATABASE_URL)
	@$(BIN)/python -m migrations.distribute

test: install ## Run the tests, on SQLite and on a Postgres that they start
	$(BIN)/pytest $(PARALLEL)

coverage: install ## Run the same tests, and list the lines and branches of app/ that they do not reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-slow: install ## Run the slow tests
	$(BIN)/pytest -m slow $(PARALLEL) tests/test_copy.py $(call MARKED,slow)  # the longest first

test-chaos: install ## Run the tests that break the network, the database or the process under a running service
	$(BIN)/pytest -m chaos $(PARALLEL) $(call MARKED,chaos)

test-proxy: install $(NGINX) ## Run the tests behind nginx, with docs/nginx.conf
	$(BIN)/pytest -m proxy $(call MARKED,proxy)

test-browser: install $(NGINX) ## Run the tests of /docs in Chromium
	@command -v chromedriver > /dev/null && { command -v chromium || command -v chromium-browser || command -v google-chrome; } > /dev/null || \
	{ echo "Chromium is needed (Debian: apt-get install --no-install-recommends chromium chromium-driver)." >&2; exit 1; }
	$(BIN)/pytest -m browser $(call MARKED,browser)

# The tests of the contract, and what they need. One cluster can't be shared, so they run one after the other.
CITUS := $(wildcard tests/revisions/test_citus.py) $(addprefix tests/test_,$(addsuffix .py,citus heroes contract etags idempotency batch pagination cursors export concurrency))

test-citus: install ## Run the tests of the contract on a Citus cluster (TEST_CITUS_URL), whose database they empty
	@test -n "$(TEST_CITUS_URL)" || { echo "TEST_CITUS_URL has to name a database of a coordinator." >&2; exit 1; }
	$(BIN)/pytest -m "not slow and not not_citus" $(CITUS)

.nginx/usr/sbin/nginx:
	@mkdir -p .nginx && cd .nginx && \
	{ apt-get -qq download nginx || { apt-get -qq update && apt-get -qq download nginx; }; } && \
	dpkg -x nginx_*.deb . && usr/sbin/nginx -v || \
	{ rm -rf ../.nginx; echo "nginx could not be downloaded: install it (Debian: apt-get install nginx)." >&2; exit 1; }

test-pooler: install $(PGBOUNCER) ## Run the tests behind PgBouncer, and those of the contract through it
	$(BIN)/pytest -m pooler $(PARALLEL) $(call MARKED,pooler)
	DATABASE_URL=postgresql:/// DATABASE_POOLER=transaction $(BIN)/pytest $(PARALLEL) -k postgres $(CONTRACT:%=tests/test_%.py)

.pgbouncer/usr/sbin/pgbouncer:
	@mkdir -p .pgbouncer && cd .pgbouncer && \
	libraries() { apt-cache depends pgbouncer | awk '/Depends: lib(c-?ares|event)/ { print $$2 }'; } && \
	{ apt-get -qq download pgbouncer $$(libraries) || \
	{ apt-get -qq update && apt-get -qq download pgbouncer $$(libraries); }; } && \
	for package in *.deb; do dpkg -x "$$package" .; done && \
	LD_LIBRARY_PATH="$$(echo usr/lib/*-linux-*)" usr/sbin/pgbouncer --version || \
	{ rm -rf ../.pgbouncer; echo "PgBouncer could not be downloaded: install it (Debian: apt-get install pgbouncer)." >&2; exit 1; }

test-replication: install ## Run the tests of a read replica and of failover, on several servers
	$(BIN)/pytest -m replication --numprocesses 2 --dist loadfile $(call MARKED,replication)

fuzz: install ## Send generated requests, sequences of them and raw bytes to both databases, with a random seed (10 min)
	FUZZ_EXAMPLES=1000 FUZZ_SEED=random $(BIN)/pytest -s -m "" tests/test_fuzz*.py

clients: install ## Generate clients in Python and TypeScript, check their types and run them; needs Node
	$(BIN)/pytest -m node

bench: .venv-bench/installed ## Compare the service with other implementations, and with its REVISION if set (30 min)
	@command -v wrk > /dev/null || { echo "wrk is needed (Debian: apt-get install wrk)." >&2; exit 1; }
	.venv-bench/bin/python -m bench.compare $(if $(REVISION),--revision "$(REVISION)")

lint: install ## Check style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install ## Check types
	$(BIN)/mypy

drift: install ## Compare the models with the migrations, on a new database
	@folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT && export DATABASE_URL="sqlite:///$$folder/drift.db" && \
	unset DATABASE_POOLER DATABASE_REPLICA_URL MIGRATION_DATABASE_URL && \
	$(BIN)/alembic upgrade head && $(BIN)/alembic check

# --strict: fail too where a package could not be looked up. Nothing is installed: the locks name every version.
audit: install ## Look for known vulnerabilities of the locked dependencies
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock --requirement requirements-dev.lock

SBOM ?= sbom.json

sbom: install ## Write the dependencies of the image to sbom.json, in the format of CycloneDX
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-file $(SBOM) requirements.lock

format: install ## Fix and format the code
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

lock: install ## Lock the newest versions of the dependencies; needs Node
	$(LOCK) --output-file requirements.lock --extra telemetry pyproject.toml
	$(LOCK) --output-file requirements-dev.lock --constraints requirements.lock --extra telemetry --group dev pyproject.toml
	$(LOCK) --output-file tests/clients/requirements.lock --group clients
	$(LOCK) --output-file bench/requirements.lock --constraints requirements.lock --extra telemetry --group bench pyproject.toml
	cd tests/clients && npm update --package-lock-only --no-audit --no-fund

clean: ## Remove what the other targets created
	rm -rf .venv .venv-bench .mypy_cache .pytest_cache .ruff_cache .hypothesis .schemathesis .nginx .pgbouncer .coverage .coverage.* sbom.json database.db database.db-shm database.db-wal database.db.*.bak*
