# An environment that is there keeps its Python; a new one takes the newest that will do.
PYTHON ?= $(or $(shell deploy/python.sh),$(error no Python))
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
MLFLOW_PORT ?= 5000

.PHONY: setup demo demo-fashion demo-down secrets cluster-up cluster-smoke cluster-down \
	cluster-backup cluster-restore test test-quick lint docs bench

setup: $(VENV)/.ready  ## everything that the other targets need, into .venv

# constraints.txt pins torch's version. Its build is that of the package index: on Linux most have the one for CUDA.
# TORCH_INDEX= names another index for torch alone (PyTorch's installation page lists them, one for the CPU too).
PIP := $(BIN)/python -m pip install --disable-pip-version-check
$(VENV)/.ready: pyproject.toml constraints.txt sync_bn/_kernels.cpp
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "about to download 350 MB, and torch: 200 MB as built for the CPU, 2.7 GB as built for CUDA;" \
		"it is the build of $(or $(TORCH_INDEX),the index that pip uses: TORCH_INDEX= names another)"
	$(if $(TORCH_INDEX),$(PIP) --index-url '$(TORCH_INDEX)' "$$(grep '^torch==' constraints.txt)")
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## train the example on two workers; KEEP=1 leaves the stack up
	PORT=$(PORT) MLFLOW_PORT=$(MLFLOW_PORT) KEEP=$(KEEP) deploy/demo.sh training/recipes/digits.yaml

demo-fashion: setup  ## ResNet-18 on a part of Fashion-MNIST
	PORT=$(PORT) MLFLOW_PORT=$(MLFLOW_PORT) KEEP=$(KEEP) deploy/demo.sh training/recipes/fashion_resnet18.yaml \
		--set data.init_args.limit=1000 --set training.max_epochs=2 --set training.global_batch_size=32 \
		--set lr_scheduler.init_args.total_iters=20

demo-down: setup  ## end a stack that KEEP=1 left
	$(BIN)/syncbn down --data-dir demo

# Compose 2 is `docker compose`, Compose 1 `docker-compose`; either will do.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
WORKERS ?= 2

secrets: .env  ## passwords and keys for the containers; what is there stays
.env:
	deploy/secrets.sh

cluster-up: .env  ## the whole service in containers, with WORKERS=2 for jobs
	$(COMPOSE) up --build --detach --scale ray-worker=$(WORKERS)
	deploy/wait-ready.sh $(COMPOSE)

cluster-smoke: setup  ## prove that it works: jobs that parts of it are taken away from
	set -a && . ./.env && COMPOSE='$(COMPOSE)' $(BIN)/python deploy/smoke.py

cluster-backup: .env  ## save its data into TO=folder
	deploy/backup.sh "$(or $(TO),$(error say where to: make cluster-backup TO=folder))" $(COMPOSE)

cluster-restore:  ## put back the data in FROM=folder, into a cluster that has none
	deploy/restore.sh "$(or $(FROM),$(error say where from: make cluster-restore FROM=folder))" $(COMPOSE)

cluster-down:  ## end it; its data stays, but for VOLUMES=1
	$(COMPOSE) down --remove-orphans $(if $(VOLUMES),--volumes)

test: setup  ## all tests, with the system packages they need
	deploy/test-packages.sh
	OMP_NUM_THREADS=1 PYTEST='$(BIN)/python -m pytest' deploy/test.sh

test-quick: setup  ## those that need no Ray, MLflow, PostgreSQL or browser, in two minutes
	OMP_NUM_THREADS=1 PYTEST='$(BIN)/python -m pytest' deploy/test.sh quick

lint: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sync_bn training service deploy testing tests benchmarks docs

docs: setup  ## the documentation site, into build/docs
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs . build/docs

bench: setup  ## measure, beside peers that only this installs; results go to benchmarks/results
	$(PIP) -q -c constraints.txt -e '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks
