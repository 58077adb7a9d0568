# Each target is one line onto `newllm` or a tool; colab_bootstrap.sh alone knows how the environment is made.

# Where the environment is: on Colab the system Python, elsewhere .venv in this clone.
PYTHON = $(if $(COLAB_RELEASE_TAG),python3,.venv/bin/python)
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q

# Real data for tests, if it lies beside the clone; without it those tests skip and say so.
ifneq ($(wildcard ../shared/data),)
export NEWLLM_TEST_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help setup test test-slow test-gpu lint demo notebooks clean

help:  ## this list
	@grep -E '^[a-z0-9.-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/'

setup:  ## install everything for tests (once; at once afterwards)
	@bash colab_bootstrap.sh --setup-only demo,dev

test: setup lint  ## everything that needs no GPU and no network
	$(PYTEST) -n 2 -m "not slow and not gpu"

test-slow: setup  ## browser, long faults, fresh environments
	$(PYTEST) -m "slow and not gpu"

test-gpu: setup  ## on a machine with a CUDA GPU
	$(PYTEST) -m gpu

lint: setup  ## style and import order
	$(PYTHON) -m ruff check .

demo:  ## New-LLM and TinyGPT2 on real dialogues, then the comparison
	bash colab_bootstrap.sh demo --foreground

notebooks: setup  ## build notebooks/*.ipynb from notebooks/src
	$(PYTHON) notebooks/build.py

clean:  ## remove caches (never runs, never the environment)
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -r {} +
	rm -rf .pytest_cache .ruff_cache build *.egg-info
