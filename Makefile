# Each target is one line onto `newllm` or a tool; colab_bootstrap.sh alone knows how the environment is made.

# Where the environment is: on Colab the system Python, elsewhere .venv in this clone.
PYTHON = $(if $(COLAB_RELEASE_TAG),python3,.venv/bin/python)
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q
NEWLLM = $(PYTHON) -m newllm_lib

# Real data for tests, if it lies beside the clone; without it those tests skip and say so.
ifneq ($(wildcard ../shared/data),)
export NEWLLM_TEST_DATA ?= $(abspath ../shared/data)
endif

.PHONY: docs help setup test test-slow test-gpu lint demo notebooks clean check-phase7-env verify-phase7 triton-attn recipe data-lite \
	train-phase7-1.5b train-phase7-1.5b-test train-phase7-1.5b-resume train-phase7-small chat-phase7-1.5b bench-phase7-1.5b \
	train-phase8 bench-phase8-vs-phase7

help:  ## this list
	@grep -E '^[a-z0-9.-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/'

setup:  ## install everything for tests (once; at once afterwards)
	@bash colab_bootstrap.sh --setup-only demo,dev

test: setup lint  ## everything that needs no GPU and no network
	$(PYTEST) -n 2 -m "not slow and not gpu"

test-slow:  ## browser (needs Chromium: apt-get install chromium), long faults, fresh environments
	@bash colab_bootstrap.sh --setup-only demo,dev,browser
	$(PYTEST) -m "slow and not gpu"

test-gpu: setup  ## on a machine with a CUDA GPU
	$(PYTEST) -m gpu

lint: setup  ## style, format, import order and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

demo:  ## New-LLM and TinyGPT2 on real dialogues, then the comparison
	bash colab_bootstrap.sh demo --foreground

docs:  ## the documentation site, in site/ (strict: a broken link fails)
	@bash colab_bootstrap.sh --setup-only demo,dev,docs
	$(PYTHON) -m mkdocs build

notebooks: setup  ## build notebooks/*.ipynb from notebooks/src
	$(PYTHON) notebooks/build.py

# Phase 7. More flags in ARGS, as in: make train-phase7-small ARGS="--max_steps 100". `make recipe` decides what 1.5b trains on.
MIX = $(if $(wildcard data/mix/train.jsonl),--data_dir data/mix)

check-phase7-env: setup  ## GPU, memory, dtype; each kernel once against its reference
	$(NEWLLM) doctor --recipe phase7_1.5b --kernels

verify-phase7: setup  ## the model's and the kernels' tests: parameters, causality, gradients
	$(PYTEST) tests/models/test_phase7.py tests/ops/test_hyperbolic_attention.py tests/ops/test_tensor_train.py tests/ops/test_self_check.py

triton-attn: setup  ## the attention kernel against its reference
	$(NEWLLM) doctor --kernels hyperbolic_attention

recipe: setup  ## choose what 1.5b is trained on (asks; or ARGS="--weights demo=2,dolly=1")
	$(NEWLLM) data mix --output data/mix $(ARGS)

data-lite: setup  ## 1,000 documents of ChitChat, with no network
	$(NEWLLM) data get demo --max_samples 1000 --output data/lite $(ARGS)

train-phase7-1.5b: setup  ## 1.51 billion parameters
	$(NEWLLM) train phase7_1.5b $(MIX) $(ARGS)

train-phase7-1.5b-test: setup  ## ten steps at a size for any machine
	$(NEWLLM) train phase7_test $(ARGS)

train-phase7-1.5b-resume: setup  ## go on from CHECKPOINT (default: the last)
	$(NEWLLM) train phase7_1.5b --resume $(or $(CHECKPOINT),last) $(MIX) $(ARGS)

train-phase7-small: setup  ## 25 million parameters on ChitChat
	$(NEWLLM) train phase7_small $(ARGS)

chat-phase7-1.5b: setup  ## talk with CHECKPOINT (default: the newest run)
	$(NEWLLM) chat $(or $(CHECKPOINT),phase7_1.5b) $(ARGS)

bench-phase7-1.5b: setup  ## whole training steps: memory, tokens/s, MFU, and the largest model that fits
	$(NEWLLM) bench phase7 --largest $(ARGS)

train-phase8: setup  ## linear attention: 25 million parameters on ChitChat
	$(NEWLLM) train phase8_small $(ARGS)

bench-phase8-vs-phase7: setup  ## quality at equal parameters and tokens; speed and memory from 512 to 65,536 tokens
	$(NEWLLM) bench phase8 $(ARGS)

clean:  ## remove caches (never runs, never the environment)
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -r {} +
	rm -rf .pytest_cache .ruff_cache build *.egg-info
