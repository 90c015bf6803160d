# `make help` lists the targets. Each one sets up what it needs; nothing has to be installed first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
unexport DS_ACCELERATOR

VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin
# Files of tests: most run on one core, and those with several processes wait for each other a lot
TWO_AT_A_TIME := -n 2 --dist loadfile
SYSTEM_PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
MISSING = { ! $(SYSTEM_PYTHON) -c 'import ensurepip' || ! command -v g++ || ! test -e \
	"$$($(SYSTEM_PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"; } >/dev/null 2>&1

.PHONY: help setup demo test test-slow test-slurm test-browser chaos gpu lint format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## virtual environment in .venv with the pinned dependencies

$(RUN)/python:
	@test -n "$(SYSTEM_PYTHON)" || { echo "Python 3.11 or later is needed and none was found: install python3 (Debian: apt-get install python3 python3-venv python3-dev g++)"; exit 1; }
	@if $(MISSING); then \
	  packages="python3-venv python3-dev g++"; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q && apt-get install -y -q $$packages; \
	  else echo "note: venv, the Python headers or a C++ compiler are missing; if the next step fails: sudo apt-get install $$packages"; fi; fi
	$(SYSTEM_PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml .ci/constraints.txt | $(RUN)/python
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## pre-training, fine-tuning on ten minutes, a language model, transcripts, a report; AUDIO=folder uses your recordings, SEED=N other random numbers
	$(RUN)/python launch/demo.py $(if $(AUDIO),--audio "$(AUDIO)") $(if $(SEED),--seed $(SEED))

test: $(STAMP)  ## the tests (no GPU or Slurm needed)
	$(RUN)/python -m pytest $(TWO_AT_A_TIME)

test-slow: $(STAMP)  ## the tests that the default leaves out to stay under ten minutes
	$(RUN)/python -m pytest -m slow $(TWO_AT_A_TIME)

test-slurm: $(STAMP)  ## installs Slurm on this machine (Debian, root) and runs the tests on it
	bash tests/slurm/install.sh
	$(RUN)/python -m pytest -m slurm tests/slurm

test-browser: $(STAMP)  ## installs Chromium on this machine (Debian, root) and opens reports in it
	bash tests/browser/install.sh
	$(RUN)/python -m pytest -m browser tests/browser

chaos: $(STAMP)  ## random attacks on one run on a real Slurm, and a report (ATTACKS=30 SEED=1 OUTPUT=chaos; 15 minutes)
	bash tests/slurm/install.sh
	$(RUN)/python -m tests.slurm.chaos --attacks $(or $(ATTACKS),30) --seed $(or $(SEED),1) --output $(or $(OUTPUT),chaos)

gpu: $(STAMP)  ## the kit for a machine with one GPU: tests, steps, trainings, a page (STAGES="tests step_base" OUTPUT=gpu AGAIN=1 TINY=1)
	$(RUN)/python benchmarks/gpu.py $(STAGES) --output "$(or $(OUTPUT),gpu)" $(if $(AGAIN),--again) $(if $(TINY),--tiny)

lint: $(STAMP)  ## ruff and mypy
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(STAMP)  ## let ruff format and mend what it can
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

clean:  ## remove the output of demo, chaos and gpu, caches and builds (not .venv)
	rm -rf demo chaos gpu build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
