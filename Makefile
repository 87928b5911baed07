# Every target works from a fresh clone: what is missing is installed into .venv first.
# Needed beside this: Python >= 3.11 as python3 (or PYTHON=...), and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
PROTO := protos/dp/v1/deployment_pipeline.proto
UV_VERSION := 0.13.9
SEEDS ?= 3
CALLS ?= 200

.DEFAULT_GOAL := help
.PHONY: help run run-secure test proof mesh bench bench-quick check lint types verify proto docs baseline release lock reset clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

run: $(READY) ## Serve on 127.0.0.1:50051 with an embedded Postgres and Redis (a first try)
	@exec $(BIN)/deployment-pipeline serve --embedded

run-secure: $(READY) ## The same over TLS, with a private CA, a token and grants, which it makes
	@exec $(BIN)/deployment-pipeline serve --embedded --secure

test: $(READY) ## Run all tests on real stores (DP_TEST_DATABASE_URL, DP_TEST_REDIS_URL; else embedded ones)
	$(BIN)/python -m pytest

proof: $(READY) ## Everything that is done to break it, SEEDS=n of each fault; prints a table (long)
	DP_TEST_SEEDS=$(SEEDS) DP_TEST_SCHEDULES=3000 DP_TEST_EXAMPLES=1000 $(BIN)/python -m pytest tests/model tests/faults tests/acceptance/test_races.py \
		-m 'proof or not proof'

mesh: $(READY) ## Behind real proxies, CALLS=n of each kind; needs haproxy, nginx and pgbouncer; prints tables (long)
	@PYTHONPATH=tests $(BIN)/python -m support.mesh.programs
	DP_TEST_CALLS=$(CALLS) $(BIN)/python -m pytest tests/mesh -m mesh

bench: $(BENCH_READY) ## How fast it is beside what limits it; writes benchmarks/results/latest.* (long)
	$(BIN)/python -m benchmarks

bench-quick: $(BENCH_READY) ## The same in under 90 seconds, on smaller tables
	$(BIN)/python -m benchmarks --quick

check: lint types verify test ## All that must hold before a change lands

lint: $(READY) ## Style, import directions, the proto's style and compatibility
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/buf breaking protos --against protos/baseline.binpb

types: $(READY) ## mypy, strict
	$(BIN)/mypy

verify: $(READY) ## Fail if generated code or docs differ from their sources
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(MAKE) --no-print-directory generate OUT="$$fresh" && \
	diff -r -x __pycache__ "$$fresh" generated && \
	$(BIN)/python -m deployment_pipeline.states | diff - docs/states.md && \
	echo 'generated code and docs are up to date'

proto: $(READY) ## Write generated/ from the proto
	@$(MAKE) --no-print-directory generate OUT=generated

docs: $(READY) ## Write docs/states.md from the law
	$(BIN)/python -m deployment_pipeline.states > docs/states.md

.PHONY: generate
generate:
	@mkdir -p $(OUT)/dp/v1 && touch $(OUT)/dp/__init__.py $(OUT)/dp/v1/__init__.py
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos \
		--python_out=$(OUT) --grpc_python_out=$(OUT) \
		--mypy_out=$(OUT) --mypy_grpc_out=$(OUT) $(PROTO)

baseline: $(READY) ## At a release: what later changes of the proto must stay compatible with
	$(BIN)/buf build protos --exclude-source-info -o protos/baseline.binpb

release: ## At a release: pack its code, which the next release's upgrade tests run beside their own
	@test -z "$$(git status --porcelain src generated)" || { echo 'src and generated have changes that are not committed'; exit 1; }
	rm -f tests/releases/*.tar.gz
	version=$$(sed -n 's/^VERSION = "\(.*\)"/\1/p' src/deployment_pipeline/release.py) && \
	git archive --format=tar HEAD src generated | gzip -n9 > tests/releases/$$version.tar.gz

lock: $(READY) ## Rewrite requirements*.lock from pyproject.toml
	$(BIN)/pip install -q uv==$(UV_VERSION)
	$(BIN)/uv pip compile pyproject.toml -q --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --upgrade -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml -q --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --upgrade --extra embedded --group dev -o requirements-dev.lock
	$(BIN)/uv pip compile --group bench -c requirements-dev.lock -q --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --upgrade -o requirements-bench.lock

reset: ## Remove the embedded stores' data: the next run begins anew
	rm -rf .dp

clean: ## Remove the virtual environment, caches and the embedded stores' data
	rm -rf $(VENV) .dp .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python >= 3.11 is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)'; exit 1; }
	@echo 'installing into $(VENV) (once) ...'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BENCH_READY): $(READY) requirements-bench.lock
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@
