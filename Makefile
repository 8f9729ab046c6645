# Everything runs in environments that these targets make themselves; nothing has to be activated.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The Python that the environments are made of: 3.11 where there is one.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.10 python3; do \
    "$$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
    && { echo "$$name"; break; }; done)
# NeMo 2.1.0 with Megatron-Core 0.10.0; and NeMo 2.2.1 with 0.11.0, what NVIDIA's NeMo 25.02 container carries
VENV := .venv
VENV_25_02 := .venv-25-02
# TRL as it is now, for the benchmarks: its transformers is newer than NeMo's
VENV_TRL := .venv-trl
# A Python that has the stack already, a container's or a bare machine's: make gpu-check PYTHON_OF_STACK=python3
PYTHON_OF_STACK ?=
TESTS ?= tests/unit tests/slurm tests/parallel tests/functional
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=

.PHONY: help demo real paper-small test test-stacks gpu-check faults bench lint doctor

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: $(VENV)/.installed  ## a small model trained with DPO, DPOP and MinorDPO, evaluated and compared
	$(VENV)/bin/python -m nemo_minordpo sweep demo

real: $(VENV)/.installed  ## the same road with GSM8K and SmolLM2-135M-Instruct
	$(VENV)/bin/python -m nemo_minordpo sweep real

paper-small: $(VENV)/.installed  ## the paper's experiment at the size of two cores: 24 runs in about an hour
	$(VENV)/bin/python -m nemo_minordpo sweep paper-small

test: $(VENV)/.installed  ## all tests that need no GPU; those of the launchers where Slurm is (PYTEST_ARGS="-k name")
	$(VENV)/bin/python -m pytest $(TESTS) $(PYTEST_ARGS)

gpu-check: $(if $(PYTHON_OF_STACK),,$(VENV)/.installed)  ## what a GPU's stack computes, and how fast (PYTHON_OF_STACK=python3)
	$(or $(PYTHON_OF_STACK),$(VENV)/bin/python) -m tests.gpu $(GPU_CHECK_ARGS)

faults: $(VENV)/.installed  ## 20 jobs on a Slurm of virtual nodes, each hurt once; results in docs/ (root, an hour)
	$(VENV)/bin/python -m tests.slurm.faults

test-stacks: $(VENV)/.installed $(VENV_25_02)/.installed  ## the parallel tests on both NeMo and Megatron-Core pairs
	$(VENV)/bin/python -m pytest tests/parallel $(PYTEST_ARGS)
	$(VENV_25_02)/bin/python -m pytest tests/parallel $(PYTEST_ARGS)

bench: $(VENV)/.installed $(VENV_TRL)/.installed  ## beside NeMo-Aligner and TRL: about an hour; results in docs/
	$(VENV)/bin/python -m tests.benchmarks.run
	$(VENV)/bin/python -m tests.benchmarks.head
	$(VENV)/bin/python -m tests.benchmarks.scaling
	$(VENV)/bin/python -m tests.benchmarks.peak
	$(VENV)/bin/python -m tests.benchmarks.conversion
	$(VENV)/bin/python -m tests.benchmarks.plan
	$(VENV)/bin/python -m tests.benchmarks.metamath

lint: $(VENV)/.installed  ## style, types and the layers between the modules
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

doctor: $(VENV)/.installed  ## what this machine has and lacks for training
	$(VENV)/bin/python -m nemo_minordpo doctor

$(VENV)/.installed: EXTRAS = cpu,dev
$(VENV_25_02)/.installed: EXTRAS = cpu-25-02,dev
$(VENV)/.installed $(VENV_25_02)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no python3.10, python3.11 or python3.12 found: install one," \
	    "or say which: make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up $(@D) with $(PYTHON), once: about 2.5 GB, some minutes. What pip says: $(@D)/install.log"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --progress-bar off --editable '.[$(EXTRAS)]' 2>&1 | tee $(@D)/install.log \
	    | awk '/^ *(Collecting|Downloading|Building) / && ++count % 25 == 0 { print "  " $$1, $$2; fflush() } \
	           /^(Installing collected|Successfully installed|ERROR)/ { print "  " $$1, $$2; fflush() }' || { tail -n 20 $(@D)/install.log; exit 1; }
	@$(@D)/bin/python -m pip check
	@touch $@

$(VENV_TRL)/.installed:
	@echo "Setting up $(@D), once. What pip says: $(@D)/install.log"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --progress-bar off torch==2.13.0 trl==1.16.0 > $(@D)/install.log 2>&1 \
	    || { tail -n 20 $(@D)/install.log; exit 1; }
	@touch $@
