# make demo    the environment, then the whole method on the embedded data (3 to 7 minutes on 2 cores)
# make test    the environment, then the tests
# make exhaustive   the tests, and those that look at more cases of the same
# make lint    ruff, pyright, import-linter
# make docs    the documentation, warnings being errors: docs/_build/html
# make bench   speed, as ratios taken in one process
# make floor / latest   the tests on the oldest and the newest supported stack
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs/demo
SOURCES = apl_jax configs examples benchmarks tests setup.py

.PHONY: demo test exhaustive lint docs format bench floor latest clean
.DELETE_ON_ERROR:

$(VENV)/.made:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'apl_jax needs Python >= 3.11, found ' + sys.version)"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/.lint: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --editable '.[lint]'
	touch $@

demo: $(VENV)/.run
	$(BIN)/apl-jax run --config=spsw:demo --workdir=$(WORKDIR)

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not exhaustive" -n 2 --dist loadfile --no-loadscope-reorder

exhaustive: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.lint
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: $(VENV)/.test
	$(BIN)/python benchmarks/speed.py

floor:
	$(MAKE) test VENV=.venv-floor PYTHON=python3.11

latest:
	$(MAKE) test VENV=.venv-latest PYTHON=python3.13

clean:
	rm -rf $(VENV) .venv-floor .venv-latest .cache
