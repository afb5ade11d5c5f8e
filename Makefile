# make setup | demo | test | test-slurm | test-gpu | lint
#
# Everything is installed into .venv, once, and again when setup.py or constraints.txt changes.
# Another Python or other versions: make setup PYTHON=python3.12 CONSTRAINTS=versions.txt

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
INSTALLED := .venv/.installed

# One line for each package that is fetched, none for those that are there. With CUDA_HOME set, fairseq's set-up wants
# CUDA sources that its package lacks.
PIP_INSTALL = env -u CUDA_HOME $(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS)
BRIEFLY = | { grep --line-buffered -vE '^ |already satisfied|^Looking in|^Obtaining' || true; }

.PHONY: setup demo test test-slurm test-gpu lint

setup: $(INSTALLED)

# fairseq is compiled, which needs torch: so torch comes first, and the build does not fetch another one for itself. On
# Python 3.13, editdistance is compiled too, by pdm-backend.
$(INSTALLED): setup.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; (3, 11) <= sys.version_info < (3, 14) or sys.exit(f"$(PYTHON) is Python {v}, and 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo '--- PyTorch: some gigabytes to download'
	@$(PIP_INSTALL) torch torchaudio numpy cython setuptools wheel pdm-backend $(BRIEFLY)
	@echo '--- amae_plugin and fairseq, which is compiled: about four minutes'
	@$(PIP_INSTALL) --no-build-isolation -e '.[demo,dev]' $(BRIEFLY)
	@touch $@

demo: setup
	$(BIN)/python -m amae_plugin.demo

test: lint
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# On two clusters of its own, side by side, which need Debian's slurm-wlm and munge.
test-slurm: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/slurm

# On the machine's GPU, in minutes; with AMAE_TEST_DEVICE=cpu the same code runs on the CPU, in more of them.
test-gpu: setup
	$(BIN)/python -m pytest -rfE -n auto --maxprocesses 6 tests/gpu

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
