# Two commands: `make demo` sets up and runs the quickstart, `make test` sets up and runs all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test e2e faults storm fuzz lint setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/forkcast run examples/quickstart.yaml --workdir $(DEMO)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_manifest_reference.py --check
	$(BIN)/python scripts/generate_statistics_reference.py --check
	$(BIN)/python scripts/draw_branch.py --check
	$(BIN)/python scripts/generate_crds.py --check
	$(BIN)/python scripts/generate_dashboards.py --check
	$(BIN)/python scripts/generate_values_reference.py --check
	$(BIN)/python -m tests.faults --check

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# images, chart and a run on a real cluster, where a command that starts one is at hand
e2e: setup
	scripts/e2e.sh

# every kill point, one run each: more than an hour on two cores
faults: setup
	FORKCAST_CRASH_STRIDE=1 $(BIN)/pytest tests/operator/cluster/test_crash_points.py
	$(BIN)/pytest -m faults tests/operator/cluster
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "" tests/loop/test_kill_points.py

# 100 parts of a local run killed at random, on a folder and on a flaky, slow and silent bucket; half an
# hour each on two cores
storm: setup
	$(BIN)/python tests/loop/storm.py --kills 100 --store folder
	$(BIN)/python tests/loop/storm.py --kills 100 --store s3

# the coverage-guided fuzzer, an hour a target, two targets at a time
FUZZ_SECONDS ?= 3600
FUZZ_SEED ?= 0
fuzz: setup
	ls tests/fuzz/targets | sed -n 's/^\([a-z]\w*\)\.py$$/\1/p' | \
	  OMP_NUM_THREADS=1 xargs -P 2 -I{} $(BIN)/python -m tests.fuzz {} --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

clean:
	rm -rf $(VENV) $(DEMO) runs
