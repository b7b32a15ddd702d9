# make train: sets everything up and trains the four rules on the embedded digits.
# make test:  sets everything up and passes the unit tests.
# make test-slow: the tests that take a second or more each, or start processes.
# make docs:  sets everything up and builds the site, build/site/index.html.
# make test-jax, make test-torch: the toolkit's tests on that backend, without TensorFlow.
# make test-jax-runs: runs, sweeps and searches that JAX computes.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/digits

.PHONY: train test docs notebooks unit test-slow test-jax test-torch test-jax-runs long lint clean

train: .venv/ready
	@$(BIN)/python trainers/train.py --config=configs/digits.py --workdir=$(WORKDIR) \
		--rules=backprop,fa,ada_fa,sign_fa

test: lint unit

# Notebooks that did not change since they were run are not run again: `make clean` forgets.
docs: .venv/docs
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet \
		-d build/doctrees docs build/site
	@echo The site is in build/site/index.html.

# Each notebook of docs/learn in a process of its own, with its time.
notebooks: .venv/docs
	$(BIN)/python -m pytest --long -m notebooks -s tests/test_notebooks.py

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

unit: .venv/ready
	$(PYTEST) -m "not slow"

test-slow: .venv/ready
	$(PYTEST) -m slow

test-jax test-torch: test-%: .venv-%/ready
	KERAS_BACKEND=$* .venv-$*/bin/python -m pytest

test-jax-runs: .venv/ready
	KERAS_BACKEND=jax $(BIN)/python -m pytest

# What both leave out for its length: the whole of each table, kills of sweeps, searches
# and workers; XLA compiles as it does for users.
long: .venv/ready
	XLA_FLAGS= $(PYTEST) --long -m long

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

define check_python
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	(3, 11) <= v < (3, 14) or sys.exit("keras_fa needs Python 3.11 to 3.13, this " \
	"is %d.%d. Name another one: make PYTHON=python3.12 ..." % v)'
endef

.venv/ready: pyproject.toml setup.py constraints.txt
	$(check_python)
	@echo 'Setting .venv up, which takes some minutes.'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv/docs: .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[docs]'
	@touch $@

.venv-%/ready: requirements/%.txt pyproject.toml setup.py constraints.txt
	$(check_python)
	@echo 'Setting .venv-$* up, which takes a minute.'
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt -r $< beartype matplotlib pandas pytest
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --editable .
	@touch $@

clean:
	rm -rf .venv .venv-jax .venv-torch build *.egg-info
