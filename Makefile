# The targets create the environments they need; nothing has to be activated.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The Python from which the environments are created: 3.11 if installed.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.10 python3; do \
    "$$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
    && { echo "$$name"; break; }; done)
# NeMo 2.1.0 with Megatron-Core 0.10.0; and NeMo 2.2.1 with 0.11.0, as in NVIDIA's NeMo 25.02 container
VENV := .venv
VENV_25_02 := .venv-25-02
# For the rehearsal, the software of a bare GPU machine: Python 3.12, torch for CUDA (5 GB) and the stack of GPU_KIT
VENV_GPU := .venv-gpu
# A folder with Transformer Engine and NeMo for it (docs/gpu.md): site.tar.xz, and boot.sh, which adds them to the path
GPU_KIT ?= ../shared/gpu-kit
PYTHON_3_12 ?= $(firstword $(shell for name in python3.12 "$$HOME"/.pyenv/versions/3.12.*/bin/python3; do \
    "$$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && echo "$$name"; done))
# Today's Megatron: Python 3.12, torch for CUDA (5 GB), Megatron-Core and Megatron-Bridge
VENV_BRIDGE := .venv-bridge
BRIDGE := megatron-core==0.19.2 megatron-bridge==0.6.2
# A current TRL, for the benchmarks: its transformers is newer than NeMo's
VENV_TRL := .venv-trl
# A Python that already has the stack, for example a container's: make gpu-check PYTHON_OF_STACK=python3
PYTHON_OF_STACK ?=
TESTS ?= tests/unit tests/slurm tests/parallel tests/functional
PYTEST_ARGS ?=
GPU_CHECK_ARGS ?=
REHEARSAL_ARGS ?=
# 25-02: NeMo 2.2.1 with Megatron-Core 0.11.0 instead of the kit's
REHEARSAL_STACK ?=

.PHONY: help demo real paper-small test test-stacks test-bridge setup-bridge rehearse-bridge gpu-check gpu-rehearsal faults bench lint docs doctor

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: $(VENV)/.installed  ## train a small model with DPO, DPOP and MinorDPO, evaluate and compare
	$(VENV)/bin/python -m nemo_minordpo sweep demo

real: $(VENV)/.installed  ## the same pipeline with GSM8K and a real chat model, Qwen2.5-Coder-0.5B-Instruct
	$(VENV)/bin/python -m nemo_minordpo sweep real

paper-small: $(VENV)/.installed  ## the paper's experiment scaled down to two cores: 24 runs in about an hour
	$(VENV)/bin/python -m nemo_minordpo sweep paper-small

test: $(VENV)/.installed  ## all tests that need no GPU; launcher tests only with Slurm (PYTEST_ARGS="-k name")
	$(VENV)/bin/python -m pytest $(TESTS) $(PYTEST_ARGS)

gpu-check: $(if $(PYTHON_OF_STACK),,$(VENV)/.installed)  ## check a GPU machine's results and speed (PYTHON_OF_STACK=python3)
	$(or $(PYTHON_OF_STACK),$(VENV)/bin/python) -m tests.gpu $(GPU_CHECK_ARGS)

# without the kit, and in continuous integration, the CPU stack rehearses a part (tests/functional/test_rehearsal.py)
ifneq ($(and $(wildcard $(GPU_KIT)/boot.sh),$(PYTHON_3_12)),)
gpu-rehearsal: $(VENV_GPU)/.installed $(REHEARSAL_STACK:%=$(VENV_GPU)/stack-%/.installed)  ## gpu-check on a CPU that imitates a GPU, then FlexAttention for sm_90 (40 minutes)
	@export PATH="$(abspath $(VENV_GPU))/bin:$$PATH"; root=$$PWD; cd $(GPU_KIT); . ./boot.sh; cd "$$root"; \
	    export PYTHONPATH=$(REHEARSAL_STACK:%=$(abspath $(VENV_GPU))/stack-%:)$$PYTHONPATH; \
	    unset PYTHONDONTWRITEBYTECODE; export PYTHONPYCACHEPREFIX=$(abspath $(VENV_GPU))/bytecode; \
	    python3 -m tests.gpu.rehearsal $(REHEARSAL_ARGS)
	@PYTHONPATH= $(VENV_GPU)/bin/python -m tests.gpu.sm90 --output runs/gpu-rehearsal-sm90.json
else
gpu-rehearsal:
	@echo "not run: it needs Python 3.12 (PYTHON_3_12=$(or $(PYTHON_3_12),none found)) and a folder with Transformer" \
	    "Engine for it (GPU_KIT=$(GPU_KIT): $(if $(wildcard $(GPU_KIT)/boot.sh),found,no boot.sh there))"
endif

faults: $(VENV)/.installed  ## 22 jobs on virtual Slurm nodes, one injected fault each; results in docs/ (root, an hour)
	$(VENV)/bin/python -m tests.slurm.faults

test-stacks: $(VENV)/.installed $(VENV_25_02)/.installed  ## the parallel tests on both NeMo and Megatron-Core pairs
	$(VENV)/bin/python -m pytest tests/parallel $(PYTEST_ARGS)
	$(VENV_25_02)/bin/python -m pytest tests/parallel $(PYTEST_ARGS)

setup-bridge: $(VENV_BRIDGE)/.installed  ## set up today's Megatron-Core and Megatron-Bridge for test-bridge (Python 3.12, 5 GB)

test-bridge: $(VENV_BRIDGE)/.installed  ## train on a model that Megatron-Bridge builds, against transformers, on CPUs
	$(VENV_BRIDGE)/bin/python -m pytest tests/bridge $(PYTEST_ARGS)

ifneq ($(and $(wildcard $(GPU_KIT)/boot.sh),$(PYTHON_3_12)),)
rehearse-bridge: $(VENV_GPU)/stack-bridge/.installed  ## test-bridge on a CPU that imitates a GPU, with Transformer Engine's layers and FP8
	@export PATH="$(abspath $(VENV_GPU))/bin:$$PATH"; root=$$PWD; cd $(GPU_KIT); . ./boot.sh; cd "$$root"; \
	    mkdir -p $(VENV_GPU)/te; ln -sfn "$$PYTHONPATH"/transformer_engine* $(VENV_GPU)/te/; \
	    export PYTHONPATH=$(abspath tests/gpu/rehearsal/path):$(abspath $(VENV_GPU)/stack-bridge):$(abspath $(VENV_GPU)/te); \
	    python3 -m pytest tests/bridge/test_rehearsed.py $(PYTEST_ARGS)
else
rehearse-bridge: gpu-rehearsal
endif

bench: $(VENV)/.installed $(VENV_TRL)/.installed  ## compare speed with NeMo-Aligner and TRL: about an hour; results in docs/
	$(VENV)/bin/python -m tests.benchmarks.run
	$(VENV)/bin/python -m tests.benchmarks.head
	$(VENV)/bin/python -m tests.benchmarks.scaling
	$(VENV)/bin/python -m tests.benchmarks.peak
	$(VENV)/bin/python -m tests.benchmarks.conversion
	$(VENV)/bin/python -m tests.benchmarks.plan
	$(VENV)/bin/python -m tests.benchmarks.memory
	$(VENV)/bin/python -m tests.benchmarks.metamath

lint: $(VENV)/.installed  ## check style, types and import layers
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

docs: $(VENV)/.installed  ## regenerate settings and tables of docs/, and build the site in build/site
	$(VENV)/bin/python -m nemo_minordpo.config.page > docs/settings.md
	$(VENV)/bin/python -m tests.benchmarks.tables
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

doctor: $(VENV)/.installed  ## show what this machine has and lacks for training
	$(VENV)/bin/python -m nemo_minordpo doctor

$(VENV)/.installed: EXTRAS = cpu,dev
$(VENV_25_02)/.installed: EXTRAS = cpu-25-02,dev
$(VENV)/.installed $(VENV_25_02)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no python3.10, python3.11 or python3.12 found: install one," \
	    "or choose one: make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up $(@D) with $(PYTHON), once: about 2.5 GB, some minutes. Log: $(@D)/install.log"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --progress-bar off --editable '.[$(EXTRAS)]' 2>&1 | tee $(@D)/install.log \
	    | awk '/^ *(Collecting|Downloading|Building) / && ++count % 25 == 0 { print "  " $$1, $$2; fflush() } \
	           /^(Installing collected|Successfully installed|ERROR)/ { print "  " $$1, $$2; fflush() }' || { tail -n 20 $(@D)/install.log; exit 1; }
	@$(@D)/bin/python -m pip check
	@touch $@

$(VENV_GPU)/.installed: tests/gpu/rehearsal/requirements.txt
	@echo "Setting up $(@D) with $(PYTHON_3_12), once: 6 GB, some minutes. Log: $(@D)/install.log"
	@$(PYTHON_3_12) -m venv $(@D)
	@$(@D)/bin/python -m pip install --progress-bar off -r $< > $(@D)/install.log 2>&1 \
	    || { tail -n 20 $(@D)/install.log; exit 1; }
	@touch $@

$(VENV_GPU)/stack-25-02/.installed: $(VENV_GPU)/.installed
	@$(VENV_GPU)/bin/python -m pip install --progress-bar off --no-deps --target $(@D) \
	    nemo_toolkit==2.2.1 megatron-core==0.11.0 > $(VENV_GPU)/install-25-02.log 2>&1
	@touch $@

# Megatron-Bridge in the rehearsal's environment; Transformer Engine comes from GPU_KIT, without the kit's older packages
$(VENV_GPU)/stack-bridge/.installed: $(VENV_GPU)/.installed
	@$(VENV_GPU)/bin/python -m pip install --no-deps --target $(@D) $(BRIDGE) hydra-core omegaconf \
	    antlr4-python3-runtime==4.9.3 rapidfuzz nvidia-modelopt pulp orloge cpsat-logutils \
	    > $(VENV_GPU)/install-bridge.log 2>&1 || { tail -n 20 $(VENV_GPU)/install-bridge.log; exit 1; }
	@touch $@

$(VENV_BRIDGE)/.installed: tests/bridge/requirements.txt
	@test -n "$(PYTHON_3_12)" || { echo "error: no python3.12 found: Megatron-Core 0.17 and later need it. Install it," \
	    "or choose one: make PYTHON_3_12=/path/to/python3.12"; exit 1; }
	@echo "Setting up $(@D) with $(PYTHON_3_12), once: 5 GB, some minutes. Log: $(@D)/install.log"
	@$(PYTHON_3_12) -m venv $(@D)
	@$(@D)/bin/python -m pip install --progress-bar off -r $< > $(@D)/install.log 2>&1 \
	    || { tail -n 20 $(@D)/install.log; exit 1; }
	@$(@D)/bin/python -m pip install --progress-bar off --no-deps $(BRIDGE) \
	    >> $(@D)/install.log 2>&1 || { tail -n 20 $(@D)/install.log; exit 1; }
	@touch $@

$(VENV_TRL)/.installed:
	@echo "Setting up $(@D), once. Log: $(@D)/install.log"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --progress-bar off torch==2.13.0 trl==1.16.0 > $(@D)/install.log 2>&1 \
	    || { tail -n 20 $(@D)/install.log; exit 1; }
	@touch $@
