# Two commands for a new user: `make demo` and `make test`. Both set up .venv by themselves and may be repeated.
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Test files run at the same time: most of an integration test's time is a process that starts.
AT_ONCE ?= 2

export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup demo test check unit integration ray-cluster cluster-tests soak cluster cluster-down format lock generate clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## Create .venv and install everything that is pinned in requirements.lock.

$(READY): requirements.lock pyproject.toml
	@echo "==> Setting up $(VENV) from requirements.lock (about 6 GB, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Ireko needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## Compress MiniLM for three device classes, register the family in MLflow, write a report.
	@echo "==> Writing the quickstart's text: the language reference that this Python carries"
	@$(BIN)/python examples/quickstart_text.py examples/quickstart-text.jsonl
	@echo "==> ireko run examples/quickstart.yaml"
	@OMP_NUM_THREADS= $(BIN)/ireko run examples/quickstart.yaml
	@echo "==> Demo finished. See the family again with: $(BIN)/ireko show quickstart"

test: $(READY) check unit integration cluster-tests ## Run every check and every test.
	@echo "==> All checks and tests passed."

check: $(READY) ## Lint, formatting, types, import contracts.
	@echo "==> Checks: ruff, mypy, import contracts"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@if command -v helm >/dev/null; then helm lint --strict --quiet charts/ireko --set tracking.uri=http://mlflow; \
		else echo "helm lint is not run here: no helm on the PATH (the cluster tests bring their own)"; fi

unit: $(READY)
	@echo "==> Unit tests"
	@$(BIN)/python -m pytest tests/unit -q -n $(AT_ONCE) --dist loadfile

integration: $(READY)
	@echo "==> Integration tests: real MLflow, real Ray, killed runs"
	@$(BIN)/python -m pytest tests/integration -q -n $(AT_ONCE) --dist loadfile --ignore=tests/integration/run/test_run_cluster.py

ray-cluster: $(READY) ## A run on a Ray cluster of several nodes of this machine, disturbed.
	@$(BIN)/python -m pytest tests/integration/run/test_run_cluster.py -q

cluster-tests: $(READY)
	@echo "==> Cluster tests: a real API server with KubeRay and Kueue, and real nodes (their programs are built once, about 13 minutes)"
	@PYTHONPATH=tests/cluster $(BIN)/python -m rig binaries
	@$(BIN)/python -m pytest tests/cluster/test_rig.py tests/cluster/api -q
	@$(BIN)/python -m pytest tests/cluster/node tests/cluster/chain -q -rs

soak: $(READY) ## Disturb runs on real nodes at random moments (MINUTES=60) and report (root).
	@IREKO_SOAK=1 $(BIN)/python -m pytest tests/cluster/api/reconcile/test_reconcile_machine.py -q
	@PYTHONPATH=tests/cluster $(BIN)/python -m chain.soak --minutes=$(or $(MINUTES),60)

cluster: $(READY) ## Start a small real Kubernetes on this machine with KubeRay, MLflow and Ireko (root).
	@PYTHONPATH=tests/cluster $(BIN)/python -m rig up

cluster-down: $(READY) ## End that cluster and remove all of it.
	@PYTHONPATH=tests/cluster $(BIN)/python -m rig down

format: $(READY) ## Format and fix what ruff can fix.
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

generate: $(READY) ## Write the files that are generated from the models: the CRD, its reference page, the runbook.
	@$(BIN)/ireko crd > crds/ireko.dev_compressionruns.yaml
	@$(BIN)/python -c 'from ireko_api.reference import markdown; print(markdown(), end="")' > docs/reference/compressionrun.md
	@$(BIN)/python -c 'from ireko_api.runbook import markdown; print(markdown(), end="")' > docs/runbook.md
	@cp crds/ireko.dev_compressionruns.yaml charts/ireko/files/

lock: ## Resolve pyproject.toml anew into requirements.lock.
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras \
		--no-header --upgrade pyproject.toml --output-file requirements.lock

clean: ## Remove .venv, caches and the state of local runs.
	rm -rf $(VENV) .ireko .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
