# run: the main job. test: all tests. The first use builds .venv.
# Where PyTorch's own wheels are wanted (CPU only, or a CUDA version): make run TORCH_INDEX=<that index's address>
PYTHON ?= python3
RECIPE ?= digits
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check bench clean images kind minikube kind-down minikube-down production

run: $(VENV)/ready
	$(BIN)/mlites run digits

# One worker a core, one thread a worker; threads that spin while they wait cost threefold where a core is busy otherwise.
# A worker takes a file at a time, in order: e2e's few long ones would come last otherwise, when the others are done.
test: export GOMP_SPINCOUNT = 0
test: export OMP_NUM_THREADS = 1
test: $(VENV)/ready
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(COVERAGE)

check: $(VENV)/ready
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy
	$(MAKE) test COVERAGE="--cov --cov-report=term:skip-covered"

bench: $(VENV)/ready
	$(BIN)/python -m tests.benchmarks.front $(RECIPE)

# The images, with docker, podman or buildah. Variables: docker/README.md
images:
	$(PYTHON) docker/build.py $(IMAGES) --sizes docker/README.md \
	  $(if $(ENGINE),--engine $(ENGINE)) $(if $(TAG),--tag $(TAG)) $(if $(REGISTRY),--registry $(REGISTRY)) \
	  $(if $(BASE),--base $(BASE)) $(if $(TRITON_BASE),--triton-base $(TRITON_BASE)) \
	  $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) $(if $(NETWORK),--network $(NETWORK)) \
	  $(if $(PIP_CONF),--pip-conf $(PIP_CONF)) $(if $(CA_BUNDLE),--ca-bundle $(CA_BUNDLE))

# A cluster on this machine with Kubeflow Pipelines and mlites, in which the digits recipe runs.
kind minikube:
	$(PYTHON) manifests/cluster.py check $@
	$(MAKE) $(VENV)/ready
	$(PYTHON) manifests/cluster.py up $@ $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

kind-down minikube-down:
	$(PYTHON) manifests/cluster.py down $(@:-down=)

# Manifests for your cluster, on standard output. Variables: manifests/README.md
production:
	@$(PYTHON) manifests/cluster.py render production $(if $(TAG),--tag $(TAG)) \
	  $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(S3_ENDPOINT),--s3-endpoint $(S3_ENDPOINT)) \
	  $(if $(S3_REGION),--region $(S3_REGION)) $(if $(STORE),--store $(STORE))

clean:
	-test -x $(BIN)/mlites && $(BIN)/mlites stack down
	rm -rf $(VENV) .mlites runs build dist *.egg-info

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { echo "error: cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	touch $@
