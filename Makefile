# specdec: `make help` lists the targets. Needs make and Python 3.11 or newer, nothing else.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= experiments,kernels,dev
# The oldest releases that are supported; pyproject.toml's ranges begin there.
OLDEST_TRANSFORMERS ?= 5.0.0
# A CUDA build of torch requires one release of triton exactly, so these two go together.
OLDEST_TORCH ?= 2.11.0
OLDEST_TRITON ?= 3.6.0
# Processes for the default suite; each runs one thread of torch.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$(( n > 8 ? 8 : n )))
# More for pytest: make test ARGS="tests/tree -x"
ARGS ?=

, := ,
hint = @echo "For python and specdec in this shell: source $(VENV)/bin/activate"
say = @printf '\n\033[1m==> %s\033[0m\n' "$(1)"

# PYTHON=/path/to/python names one; otherwise the first of the usual names that is new enough.
PYTHON ?=
define find_python
check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; found=""; \
for candidate in $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
  if "$$candidate" -c "$$check" >/dev/null 2>&1; then python="$$candidate"; break; fi; \
  version=$$("$$candidate" --version 2>/dev/null) && found="$$found $$candidate is $$version;"; \
done; \
if [ -z "$${python:-}" ]; then \
  echo "specdec needs Python 3.11 or newer with the venv module. Found:$${found:- no python at all}" \
    "Install one (on Debian: python3 python3-venv), or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
  exit 1; \
fi
endef

.PHONY: help
help: ## show this list
	@awk '/^##@/ {printf "\n%s\n", substr($$0, 5)} match($$0, /^[a-z-]+:.*## /) {split($$0, part, /:|## /); printf "  \033[1m%-20s\033[0m %s\n", part[1], substr($$0, RLENGTH + 1)}' $(MAKEFILE_LIST)

##@ Use
.PHONY: install demo bench
install: $(VENV)/.installed ## create .venv with everything pinned (1-7 minutes, 2 GB; at once when up to date)
	$(if $(filter install,$(MAKECMDGOALS)),$(hint))

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call say,Installing specdec and its pinned dependencies into $(VENV): 1 to 7 minutes)
	@$(find_python); [ -x $(BIN)/python ] || "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: install ## plain decoding against speculation on the shipped models, offline, with a report
	$(call say,specdec run experiment=demo)
	$(BIN)/specdec run experiment=demo $(ARGS)
	$(hint)

bench: install ## time the loop against transformers' own on this machine
	$(call say,benchmarks/loop.py)
	$(BIN)/python benchmarks/loop.py $(ARGS)

##@ Check
.PHONY: browser test test-slow test-gpu test-quant test-oldest test-triton-oldest quality format
test: install ## the suite, without what is marked slow or gpu
	$(call say,Tests)
	$(BIN)/pytest -n $(JOBS) $(ARGS)

browser: ## a headless Chromium, which the tests of the trace viewer want (by apt, as root); without one they are skipped
	$(call say,A headless Chromium)
	@for name in chromium-headless-shell chromium google-chrome; do command -v $$name && exit; done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then echo "install Chromium by hand" >&2; exit 1; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	timeout 120 apt-get update -q; \
	timeout 300 apt-get install -q -y --no-install-recommends chromium-headless-shell fonts-dejavu-core

test-slow: install ## the long proofs: losslessness over many tokens, distributions
	$(call say,Slow proofs)
	$(BIN)/pytest -n $(JOBS) -m "slow and not gpu" $(ARGS)

test-gpu: install ## what needs a CUDA device
	$(call say,Tests on the GPU)
	$(BIN)/pytest -m gpu $(ARGS)

test-quant: $(VENV)/quant/.installed ## weights of 8 bits, with torchao beside .venv (in it, it would talk at every import)
	$(call say,Tests with torchao)
	PYTHONPATH=$(abspath $(VENV)/quant) $(BIN)/pytest tests/test_quantization.py $(ARGS)

test-oldest: .venv-oldest/.transformers-$(OLDEST_TRANSFORMERS) ## the suite on the oldest supported transformers, in .venv-oldest
	$(call say,Tests on transformers $(OLDEST_TRANSFORMERS))
	.venv-oldest/bin/pytest -n $(JOBS) $(ARGS)

test-triton-oldest: .venv-triton/.torch-$(OLDEST_TORCH)-triton-$(OLDEST_TRITON) ## the kernels' tests on the oldest supported triton and torch, in .venv-triton
	$(call say,Kernel tests on triton $(OLDEST_TRITON) and torch $(OLDEST_TORCH))
	.venv-triton/bin/pytest -n $(JOBS) tests/kernels $(ARGS)

$(VENV)/quant/.installed: constraints.txt | install
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt --upgrade --target $(VENV)/quant torchao
	@touch $@

# The pins but for the one package that differs here, and what must move along with it.
.venv-oldest/.transformers-$(OLDEST_TRANSFORMERS): pyproject.toml constraints.txt
	$(call say,Installing with transformers $(OLDEST_TRANSFORMERS) into .venv-oldest: 1 to 7 minutes)
	@$(find_python); [ -x .venv-oldest/bin/python ] || "$$python" -m venv .venv-oldest
	@grep -v -i -E '^(transformers|tokenizers|huggingface_hub)==' constraints.txt > .venv-oldest/constraints.txt
	@echo "transformers==$(OLDEST_TRANSFORMERS)" >> .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --disable-pip-version-check -c .venv-oldest/constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

.venv-triton/.torch-$(OLDEST_TORCH)-triton-$(OLDEST_TRITON): pyproject.toml constraints.txt
	$(call say,Installing with triton $(OLDEST_TRITON) and torch $(OLDEST_TORCH) into .venv-triton: 2 to 10 minutes)
	@$(find_python); [ -x .venv-triton/bin/python ] || "$$python" -m venv .venv-triton
	@grep -v -i -E '^(torch|triton|setuptools)==' constraints.txt > .venv-triton/constraints.txt
	@printf '%s\n' "torch==$(OLDEST_TORCH)" "triton==$(OLDEST_TRITON)" >> .venv-triton/constraints.txt
	.venv-triton/bin/python -m pip install --disable-pip-version-check -c .venv-triton/constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

quality: install ## ruff (lint, format) and mypy; all three run, whichever fails
	$(call say,ruff check$(,) ruff format --check$(,) mypy)
	@failed=""; \
	$(BIN)/ruff check . || failed="$$failed 'ruff check'"; \
	$(BIN)/ruff format --check . || failed="$$failed 'ruff format' (make format)"; \
	$(BIN)/mypy || failed="$$failed mypy"; \
	[ -z "$$failed" ] || { echo "Failed:$$failed" >&2; exit 1; }

format: install ## let ruff format and fix what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

##@ Clean
.PHONY: clean clean-venvs
clean: ## remove build products and caches, not results (outputs/) and not the environments
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

clean-venvs: clean ## remove the environments too
	rm -rf .venv .venv-oldest .venv-triton
