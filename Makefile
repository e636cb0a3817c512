# An environment that is there keeps its Python; a new one takes the newest that will do.
PYTHON ?= $(or $(shell deploy/python.sh),$(error no Python))
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
MLFLOW_PORT ?= 5000

.PHONY: setup demo demo-fashion demo-down secrets cluster-up cluster-smoke cluster-down \
	cluster-backup cluster-restore test test-quick chaos lint docs bench \
	test-triton gpu-check

setup: $(VENV)/.ready  ## install everything that the other targets need into .venv

# constraints.txt pins torch's version. The package index determines its build: on Linux usually CUDA's. TORCH_INDEX=
# names another index for torch only (PyTorch's installation page lists them, including one for the CPU).
PIP := $(BIN)/python -m pip install --disable-pip-version-check
$(VENV)/.ready: pyproject.toml constraints.txt sync_bn/_kernels.cpp sync_bn/_meeting.cpp
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "about to download 350 MB, and torch: 200 MB as built for the CPU, 2.7 GB as built for CUDA;" \
		"its build is from $(or $(TORCH_INDEX),pip's index: TORCH_INDEX= names another)"
	$(if $(TORCH_INDEX),$(PIP) --index-url '$(TORCH_INDEX)' "$$(grep '^torch==' constraints.txt)")
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## train the example on two workers; KEEP=1 leaves the stack running
	PORT=$(PORT) MLFLOW_PORT=$(MLFLOW_PORT) KEEP=$(KEEP) deploy/demo.sh training/recipes/digits.yaml

demo-fashion: setup  ## train a ResNet-18 on a part of Fashion-MNIST
	PORT=$(PORT) MLFLOW_PORT=$(MLFLOW_PORT) KEEP=$(KEEP) deploy/demo.sh training/recipes/fashion_resnet18.yaml \
		--set data.init_args.limit=1000 --set training.max_epochs=2 --set training.global_batch_size=32 \
		--set lr_scheduler.init_args.total_iters=20

demo-down: setup  ## stop a stack that KEEP=1 left running
	$(BIN)/syncbn down --data-dir demo

# Compose 2 is `docker compose`, Compose 1 `docker-compose`; either will do.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
WORKERS ?= 2

secrets: .env  ## create passwords and keys for the containers; existing ones stay
.env:
	deploy/secrets.sh

cluster-up: .env  ## start the whole service in containers, with WORKERS=2 for jobs
	$(COMPOSE) up --build --detach --scale ray-worker=$(WORKERS)
	deploy/wait-ready.sh $(COMPOSE)

cluster-smoke: setup  ## run jobs on the cluster while parts of it are taken away
	set -a && . ./.env && COMPOSE='$(COMPOSE)' $(BIN)/python deploy/smoke.py

cluster-backup: .env  ## save the cluster's data into TO=folder
	deploy/backup.sh "$(or $(TO),$(error name a folder: make cluster-backup TO=folder))" $(COMPOSE)

cluster-restore:  ## restore the data in FROM=folder into a cluster without data
	deploy/restore.sh "$(or $(FROM),$(error name a folder: make cluster-restore FROM=folder))" $(COMPOSE)

cluster-down:  ## stop the cluster; its data stays unless VOLUMES=1
	$(COMPOSE) down --remove-orphans $(if $(VOLUMES),--volumes)

test: setup  ## run all tests; installs the system packages they need
	deploy/test-packages.sh
	OMP_NUM_THREADS=1 PYTEST='$(BIN)/python -m pytest' deploy/test.sh

test-quick: setup  ## run the tests that need no Ray, MLflow, PostgreSQL or browser, in two minutes
	OMP_NUM_THREADS=1 PYTEST='$(BIN)/python -m pytest' deploy/test.sh quick

# Beside .venv, because Triton is 1 GB, and torch's build for the CPU has no other use for it. Not in constraints.txt:
# torch's builds for GPUs require a version of their own.
TRITON := build/triton
test-triton: setup $(TRITON)/.ready  ## run the tests of sync_bn's kernels for GPUs, by Triton's interpreter or on a GPU
	TRITON_INTERPRET=$$($(BIN)/python -c 'import torch; print(0 if torch.accelerator.is_available() else 1)') \
		PYTHONPATH='$(TRITON)' OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -k triton tests/sync_bn

$(TRITON)/.ready: Makefile
	$(PIP) -q --target $(TRITON) --upgrade --no-deps triton==3.9.0
	touch $@

chaos: setup  ## jobs while everything is killed and taken away; SEED=1 MINUTES=3 DATABASE=sqlite|postgresql REAL=24
	OMP_NUM_THREADS=1 $(BIN)/python -m testing.chaos --seed $(or $(SEED),1) --minutes $(or $(MINUTES),3) \
		--real-jobs $(or $(REAL),24) $(if $(DATABASE),--database $(DATABASE))

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sync_bn training service deploy testing tests benchmarks docs

docs: setup  ## build the documentation site into build/docs
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs . build/docs

bench: setup  ## run the benchmarks, with their peers installed; results go to benchmarks/results
	$(PIP) -q -c constraints.txt -e '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

# Without `setup`: it needs torch, Triton and pytest alone.
gpu-check:  ## on a machine with GPUs: test and measure the layer there; results go to benchmarks/results/gpu.md
	$(or $(wildcard $(BIN)/python),python3) -m benchmarks.gpu_check
