# Every target sets up .venv by itself. `make help` lists them.
PYTHON ?= python3
SEED ?= 0
PORT ?= 8000
KILLS ?= 20
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install run-install quickstart serve page-screenshots platform-screenshots load-test test test-slow cluster-test fault-test shapes-full real lint types contracts format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

install: .venv/installed ## set up .venv with the tested versions, and what tests and checks need

run-install: .venv/run-installed ## set up .venv with what running needs, no more

.venv/run-installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[text]'
	touch $@

.venv/installed: .venv/run-installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: run-install ## the whole method on the shapes world, on the CPU (SEED=n)
	$(BIN)/python jobs/quickstart.py seed=$(SEED)

serve: run-install ## the service with a page to try it: the quickstart's checkpoint, else the packaged model (PORT=n)
	$(BIN)/python -m serve port=$(PORT)

platform-screenshots: install ## Ray's dashboard during a sweep and MLflow's comparison after it as pictures in runs/screenshots/platform (needs a Chromium)
	UNIOVSEG_SCREENSHOTS=$(CURDIR)/runs/screenshots/platform $(BIN)/python -m pytest -m slow tests/e2e/test_screenshots.py

page-screenshots: install ## the page's main states as pictures in runs/screenshots/page (needs a Chromium)
	UNIOVSEG_SCREENSHOTS=$(CURDIR)/runs/screenshots/page $(BIN)/python -m pytest tests/serve/test_page.py -k "main_states or refusals or busy or key_is"

load-test: install ## the service under load while replicas are killed and the model is swapped
	$(BIN)/python jobs/benchmark.py serve_load

# A second OpenMP thread spins while it waits: beside other work it makes small tensors ten times slower.
test test-slow cluster-test fault-test platform-screenshots: export OMP_NUM_THREADS := 1

test: install ## the default tests, in two processes
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: install ## the tests that are left out of the default ones
	$(BIN)/python -m pytest -m slow

cluster-test: install ## the jobs as a user submits them: a store, a tracking server and two Ray nodes on this machine
	$(BIN)/python -m pytest -m e2e

fault-test: install ## a training goes on while workers, the head, the store, the tracking server and the disk fail (KILLS=n)
	UNIOVSEG_KILLS=$(KILLS) $(BIN)/python -m pytest -m fault

shapes-full: run-install ## train the shapes model that is shipped (SEED=n)
	$(BIN)/python jobs/quickstart.py --config jobs/configs/shapes_full.yaml seed=$(SEED)

real: run-install ## both stages on real images (reads UNIOVSEG_REAL_DATA and NLTK_DATA)
	$(BIN)/python jobs/real.py

lint: install ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy, strict
	$(BIN)/mypy

contracts: install ## import-linter: imports point one way
	$(BIN)/lint-imports

format: install ## ruff: mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove runs and caches (not .venv)
	rm -rf runs .mypy_cache .pytest_cache .ruff_cache
