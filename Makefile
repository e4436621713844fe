# Two commands: `make demo` runs the main job, `make test` runs every check. Both build .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-exports test-clusters format docs benchmarks clean

demo: $(STAMP)
	mkdir -p demo
	$(BIN)/dualpath plan deepseek-660b-2p4d --html demo/plan.html --picture demo/plan.png --json demo/plan.json
	@echo "pictures: demo/plan.png, demo/plan.html"

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -m "not slow and not exports and not clusters" --cov --cov-report=term:skip-covered
	# compiled once, side by side, and not by every test at the same time
	$(BIN)/dualpath simulate deepseek-660b-2p4d --agents 2 > /dev/null & \
	$(BIN)/dualpath simulate deepseek-660b-2p4d --agents 2 --policy basic > /dev/null; wait
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow and not exports and not clusters"  # without counting lines, which triples their time
	$(MAKE) test-exports
	$(MAKE) test-clusters

# Studies on real Dask and Ray clusters of this machine, and with killed workers and drivers.
test-clusters: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,calibration,dashboard,cluster]'
	$(BIN)/python -m pytest -m clusters

# Each target's own software reads our files, in environments of its own (.venv-exports, at most 3 GB).
test-exports: $(STAMP)
	$(BIN)/python -m tests.export.environments.build
	$(BIN)/python -m pytest -n 2 --dist loadfile -m exports tests/export/accepted

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m docs.generate

benchmarks: $(STAMP)
	for name in closed_form linear_program cold_start trace_reading scheduler simulator policies calibration dashboard studies fleet; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

# Reinstalled only when the project's own requirements change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,calibration,dashboard]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
