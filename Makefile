# `make help` lists the targets. PYTHON=... chooses the interpreter of the virtual environment, 3.11 or newer.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python -m
INSTALLED := .venv/.installed
PORT ?= 5000

# mlflow starts the `python` of PATH, so ours comes first, as if the environment were activated.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONHOME PYTHONPATH
# As in pipelines/__init__.py, for processes that do not import it: threads that spin starve the other cores' work.
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 1000

.DEFAULT_GOAL := help
.PHONY: help demo docs test check lint fix project bench ui

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(INSTALLED) ## a model of real handwritten digits forgets a class, into MLflow
	$(RUN) mlflow run . --env-manager local --experiment-name digits-ddpm

# By file, since tests of a file share what they train. Two processes on two cores take half the time of one; more than
# four would need more memory than a laptop has (about 1.5 GB each).
test: lint ## what CI runs: ruff, mypy and the tests
	$(RUN) pytest -n auto --maxprocesses 4 --dist loadfile

check: test ## the same as test

lint: $(INSTALLED)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

fix: $(INSTALLED) ## mend what ruff can mend
	$(RUN) ruff check --fix
	$(RUN) ruff format

project: $(INSTALLED) ## write MLproject, the command line's index and the README's table of methods from the knobs
	$(RUN) pipelines.cli.mlproject

docs: $(INSTALLED) ## build the documentation, build/site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

bench: $(INSTALLED) ## time a step of SAFEMax beside a bare step of the same denoiser
	$(RUN) benchmarks.step

ui: $(INSTALLED) ## serve MLflow's UI to this machine alone, on PORT=5000, and print where to look
	$(RUN) pipelines.ui --port=$(PORT)

# pip, not uv: pip reads pip.conf, so a machine with the CPU build of torch in a folder or index of its own gets that one.
# Elsewhere PyPI gives the CUDA build on Linux, which runs on a CPU too. For the small one set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu (pip), UV_TORCH_BACKEND=cpu (mlflow run --env-manager uv).
$(INSTALLED): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on PATH; give make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@echo "Installing the pinned dependencies into .venv (about 2 GB, some minutes, once)"
	$(RUN) pip install --disable-pip-version-check --quiet -r requirements.txt
	$(RUN) pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@
