# run: the main job. test: all tests. The first use builds .venv.
# Where PyTorch's own wheels are wanted (CPU only, or a CUDA version): make run TORCH_INDEX=<that index's address>
PYTHON ?= python3
RECIPE ?= digits
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check bench clean

run: $(VENV)/ready
	$(BIN)/mlites run digits

# one worker a core, one thread a worker; threads that spin while they wait cost threefold where a core is busy otherwise
test: export GOMP_SPINCOUNT = 0
test: export OMP_NUM_THREADS = 1
test: $(VENV)/ready
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --cov --cov-report=term:skip-covered

check: $(VENV)/ready
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy
	$(MAKE) test

bench: $(VENV)/ready
	$(BIN)/python -m tests.benchmarks.front $(RECIPE)

clean:
	-test -x $(BIN)/mlites && $(BIN)/mlites stack down
	rm -rf $(VENV) .mlites runs build dist *.egg-info

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { echo "error: cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	touch $@
