# One command for each thing a person does here; `make help` lists them.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
ARGS ?=
# Where a shell forbids bytecode, every process would compile thousands of files again: engines then start in a minute
# instead of in twenty seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup up down test demo bench lint format proto lock compose-test evaluation evaluation-quick soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install packages, compile the planner, convert the model (skips what is done)
	@deploy/install.sh --venv $(VENV)

up: setup ## start the cluster on the real model and serve until Ctrl-C (ARGS="--replicas 2")
	@$(PY) -m cli.main up $(ARGS)

down: ## stop the cluster of this checkout
	@$(PY) -m cli.main down

lint: setup ## format check, lint, types, import arrows
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

format: setup ## rewrite the sources in the project's format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Nothing in these waits for a clock: they run two at a time, and the tests that start clusters alone, after them.
TIMELESS := simulation scheduling deploy

test: setup ## every check and every test (ARGS="tests/cli -k up")
ifeq ($(strip $(ARGS)),)
	@failed=0; make --no-print-directory -k -j2 --output-sync=line -o setup $(TIMELESS:%=test-%) lint || failed=1; \
	$(PY) -m pytest -m "not soak" $(TIMELESS:%=--ignore=tests/%) || failed=1; exit $$failed
else
	@make --no-print-directory -o setup lint
	$(PY) -m pytest -m "not soak" $(ARGS)
endif

test-%: setup
	$(PY) -m pytest -m "not soak" --timeout 300 -q tests/$*

demo: setup ## a cluster of its own, a mixed burst, the table and the report
	$(PY) -m loadtest.demo $(ARGS)

soak: setup ## each failure twenty times on real engines too, for hours (ARGS="-k storm")
	$(PY) -m pytest -m soak --timeout 3600 $(ARGS)

proto: setup ## regenerate the code of protos/
	$(PY) -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. protos/slos/v1/*.proto

lock: ## write deploy/requirements/*.txt from the current environment
	$(PY) deploy/lock.py

compose-test: setup ## build and run the containers for real
	$(PY) -m deploy.compose_test $(ARGS)

bench: setup ## every benchmark, then docs/benchmarks.md (hours, on an idle machine; ARGS=--quick: minutes)
	$(PY) -m cli.main bench all $(ARGS)

bench-%: setup ## run one benchmark: bench-overhead, bench-planner, bench-slo, ...
	$(PY) -m cli.main bench $* $(ARGS)

evaluation: setup ## regenerate docs/evaluation.md with its figures (hours; resumes)
	$(PY) -m simulation.evaluation $(ARGS)

evaluation-quick: setup ## the same pipeline on a small grid (minutes)
	$(PY) -m simulation.evaluation --quick $(ARGS)

clean: ## remove the environment, models and state
	rm -rf $(VENV) .slos .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
