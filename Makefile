# make demo   sets up .venv and asks the embedded model a question
# make test   lint, types, import contracts, docs, tests: what has to pass before a change is taken
# make coverage  the same tests, and how much of the code they reach, in twice the time
# make test-extras  the tests of the parts that need packages of their own
# make curve  what thinking buys the embedded model on word problems: a table, curves, a page and a policy, in curve/
# make recipe-tiny  the whole way round: a model of 1 million parameters from nothing, taught to think, in minutes
# make lint, make docs, make bench, make clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q --no-input -c constraints.txt --build-constraint constraints.txt
CURVE := curve
QUESTIONS := 70
QUESTION := Anna has 5 apples and buys 7 more. How many apples does she have?

SOURCES := pyproject.toml constraints.txt README.md LICENSE \
	$(shell find src -type f -not -path '*/__pycache__/*')

.PHONY: demo test test-extras curve coverage recipe-tiny lint docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/ponder ask "$(QUESTION)"

curve: $(VENV)/installed-plots
	mkdir -p $(CURVE)
	$(BIN)/python recipes/problems.py --questions $(QUESTIONS) > $(CURVE)/problems.jsonl
	$(BIN)/ponder curve $(CURVE)/problems.jsonl --samples 16 --budgets 32..512 --output $(CURVE) \
		--strategies direct,chain_of_thought,vote,best_of_n,beam_search

# Each stage is skipped where it is done; remove recipes/tiny/out to begin anew.
recipe-tiny: $(VENV)/installed-train
	$(BIN)/python recipes/tiny/run.py recipes/tiny/out

test: lint
	$(BIN)/pytest -m "not slow" -n auto --dist loadfile

coverage: $(VENV)/installed-dev
	$(BIN)/pytest -m "not slow" -n auto --dist loadfile --cov --cov-report=term-missing --cov-fail-under=90

# Tasks and workers that need packages of their own; a local cluster of two nodes among them.
test-extras: $(VENV)/installed-dev
	$(INSTALL) '.[reasoning-gym,datasets,ray,plots,sandbox]'
	$(BIN)/pytest tests/tasks tests/verifiers/test_gym_forms.py tests/evals/test_ray_workers.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/cli_docs.py --check
	$(BIN)/python tools/include_examples.py --check

docs: $(VENV)/installed-dev
	$(BIN)/python tools/cli_docs.py
	$(BIN)/python tools/include_examples.py

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/budget.py
	$(BIN)/python benchmarks/strategies.py --parts tree,adaptive

clean:
	rm -rf $(VENV) $(CURVE) dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests tools examples benchmarks recipes -type d -name __pycache__ -prune -exec rm -rf {} +

# ---------------------------------------------------------------- the environment

# Each stamp is newer than everything that was installed with it. Never editable: what is tested is what is shipped.
$(VENV)/installed: $(VENV)/pip $(SOURCES)
	@echo "installing ponder into $(VENV)"
	@$(INSTALL) .
	@touch $@

$(VENV)/installed-plots: $(VENV)/pip $(SOURCES)
	@echo "installing ponder and what draws its curves into $(VENV)"
	@$(INSTALL) '.[plots]'
	@touch $(VENV)/installed $@

$(VENV)/installed-train: $(VENV)/pip $(SOURCES)
	@echo "installing ponder and what trains models into $(VENV)"
	@$(INSTALL) '.[train,plots]'
	@touch $(VENV)/installed $@

$(VENV)/installed-dev: $(VENV)/pip $(SOURCES)
	@echo "installing ponder and what its tests need into $(VENV)"
	@$(INSTALL) --group dev .
	@touch $(VENV)/installed $@

# Debian's Python comes without ensurepip where python3-venv is not installed; uv does without it.
$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ponder needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@rm -rf $(VENV)
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	elif command -v uv >/dev/null; then uv venv --quiet --seed --python "$$(command -v $(PYTHON))" $(VENV); \
	else echo "$(PYTHON) cannot make a virtual environment: install python3-venv or uv" >&2; exit 2; fi
	@$(PIP) install -q --no-input --upgrade -c constraints.txt pip
	@touch $@
