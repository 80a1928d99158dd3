# Every command runs in $(VENV); the first one makes it. `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?=
EXTRAS ?= samples,hf,rl,eval,ray,dev
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --constraint requirements/constraints.txt
STAMP := $(VENV)/.installed

##@ Set-up

.PHONY: help
help: ## list the commands
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2} \
	  END {printf "\nPYTHON=/path/to/python3.12 chooses the Python, VENV=.venv the environment.\n"}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(STAMP) ## create .venv and install everything, pinned
	@echo "$(VENV) is ready: source $(VENV)/bin/activate"

# A failed install leaves no stamp, so the next make goes on from what pip has already fetched.
$(STAMP): setup.py pyproject.toml requirements/constraints.txt requirements/find_python.sh
	@if ! $(PY) -c '' 2>/dev/null; then \
	  python=$$(PYTHON='$(PYTHON)' requirements/find_python.sh); \
	  echo "== creating $(VENV) with $$python"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "== installing megatron-ext[$(EXTRAS)] into $(VENV) (some minutes the first time: torch is large)"
	@$(PIP) --quiet setuptools
	@$(PIP) --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

##@ Checks

.PHONY: check
check: lint types test ## lint, types, tests: what continuous integration runs

.PHONY: lint
lint: $(STAMP) ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

.PHONY: types
types: $(STAMP) ## mypy, strict on data_tools, recipe, plan and study
	$(VENV)/bin/mypy

# Two workers. Those of tests that train in processes of their own take whole files, which share trained stages;
# every process has one thread, so two jobs at once do not slow each other down more than the cores are few.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q
QUICK := not slow and not gpu and not system
MANY_PROCESSES := tests/reliability tests/distributed

.PHONY: test
test: $(STAMP) ## the quick tests
	$(PYTEST) -m '$(QUICK)' -n 2 $(addprefix --ignore=,$(MANY_PROCESSES))
	$(PYTEST) -m '$(QUICK)' -n 2 --dist loadfile $(MANY_PROCESSES)

.PHONY: test-slow
test-slow: $(STAMP) ## the tests that take minutes, start whole commands or kill processes
	$(PYTEST) -m '(slow or system) and not gpu'

.PHONY: test-engines
test-engines: $(STAMP) ## a real Slurm, a real Ray and a real Chromium, where they are installed (about 8 minutes)
	$(PYTEST) -m 'system and not gpu' tests/reliability/test_slurm_engine.py tests/reliability/test_ray_engine.py \
	  tests/reliability/test_study_queue.py tests/reliability/test_study_on_slurm.py \
	  tests/reliability/test_report_in_chromium.py

GPUS ?= 1

.PHONY: gpu-check
gpu-check: ## tests/gpu and a training step's speed on this GPU (GPUS=8: on so many), in 15 minutes; installs nothing
	@$(PY) tests/gpu/check.py --gpus $(GPUS)

.PHONY: bench
bench: $(STAMP) ## measure on this machine: prints ratios, asserts nothing about time
	for benchmark in tests/benchmarks/*.py; do echo "== $$benchmark"; $(PY) "$$benchmark"; done

##@ Use

RECIPE := recipes/demo/pretrain.yaml
SFT_RECIPE := recipes/demo/sft.yaml
FORM_RECIPE := recipes/demo/form.yaml
RL_RECIPE := recipes/demo/rl.yaml
DEMO_DATA := data/demo
DEMO_SETS := base base.validation ldq ldq.validation shq shq.validation
DEMO_VOCAB := 4096
DEMO_PROCESSES ?= $(if $(filter 1,$(CORES)),1,2)
DEMO_THREADS := $(shell echo $$(( $(CORES) > $(DEMO_PROCESSES) ? $(CORES) / $(DEMO_PROCESSES) : 1 )))
# A question in the words of the shq set; the model answers in its format, if not yet rightly.
DEMO_PROMPT ?= State the final answer to the following arithmetic problem: 12 + 30 =\n\nReason step by step and put the final answer in \\boxed{}.\n\n

define tokenize_set
$(PY) -m data_tools tokenize --input $(DEMO_DATA)/raw/$(1).jsonl --tokenizer $(DEMO_DATA)/tokenizer --output $(DEMO_DATA)/tokens/$(1) --append-eod

endef

define chat_set
$(PY) -m data_tools chat --input $(DEMO_DATA)/raw/$(1).jsonl --adapter $(2) --tokenizer $(DEMO_DATA)/tokenizer --output $(DEMO_DATA)/chat/$(1)

endef

define mini_tokens
$(PY) -m data_tools tokenize --input $(2)/raw/$(1).jsonl --tokenizer $(MINI_DATA)/tokenizer --output $(2)/tokens/$(1) --append-eod

endef

define mini_chat
$(PY) -m data_tools chat --input $(2)/raw/$(1).jsonl --adapter openthoughts3 --tokenizer $(MINI_DATA)/tokenizer --output $(2)/chat/$(1)

endef

define mini_sets
@mkdir -p $(1)/tokens $(1)/chat
$(foreach set,mini_ldq mini_shq,$(foreach part,$(set) $(set).validation,$(call mini_tokens,$(part),$(1))$(call mini_chat,$(part),$(1))))

endef

define mini_overlap
$(PY) -m data_tools overlap $(1) --against $(MINI_TESTS) --adapter nemotron-crossthink --out $(MINI_DATA)/raw/$(2).overlap.jsonl

endef

COMMA := ,
SPACE := $(subst ,, )

.PHONY: demo
demo: $(STAMP) ## from raw text to a hybrid that is pretrained, fine-tuned and taught by rewards (about 6 minutes)
	@echo; echo "== 1/10 sample sources: text and code of Python's library, short and long reasoning traces"
	$(PY) -m data_tools sample --out $(DEMO_DATA)/raw
	@echo; echo "== 2/10 a byte-level BPE tokenizer of $(DEMO_VOCAB) ids"
	$(PY) -m data_tools train-tokenizer --input $(foreach set,base ldq shq,$(DEMO_DATA)/raw/$(set).jsonl) --vocab-size $(DEMO_VOCAB) --out $(DEMO_DATA)/tokenizer
	@echo; echo "== 3/10 text to tokens: .bin, .idx and a manifest for each set; conversations with a mask of the answers"
	@mkdir -p $(DEMO_DATA)/tokens
	$(foreach set,$(DEMO_SETS),$(call tokenize_set,$(set)))
	@mkdir -p $(DEMO_DATA)/chat
	$(foreach set,shq shq.validation,$(call chat_set,$(set),openthoughts3))
	$(foreach set,form form.validation,$(call chat_set,$(set),messages))
	@echo; echo "== 4/10 the plan: everything is decided before a device is touched"
	$(PY) -m megatron_ext plan $(RECIPE) --world-size $(DEMO_PROCESSES)
	@echo; echo "== 5/10 pretraining on $(DEMO_PROCESSES) process(es); Ctrl-C saves, and the same command goes on"
	OMP_NUM_THREADS=$(DEMO_THREADS) $(PY) -m torch.distributed.run --standalone --nproc-per-node $(DEMO_PROCESSES) -m megatron_ext.run $(RECIPE)
	@echo; echo "== 6/10 a few lines from the checkpoint"
	@stage=runs/stages/$$($(PY) -m megatron_ext plan $(RECIPE) --json | $(PY) -c 'import json, sys; print(json.load(sys.stdin)["stage_id"])'); \
	  echo "$(PY) -m megatron_ext generate $$stage --prompt …"; \
	  $(PY) -m megatron_ext generate $$stage --max-new-tokens 160 --prompt $$'$(DEMO_PROMPT)'
	@echo; echo "== 7/10 fine-tuning on conversations, packed and isolated, from the pretrained weights"
	OMP_NUM_THREADS=$(DEMO_THREADS) $(PY) -m torch.distributed.run --standalone --nproc-per-node $(DEMO_PROCESSES) -m megatron_ext.run $(SFT_RECIPE)
	@echo; echo "== 8/10 the same question, asked"
	@stage=runs/stages/$$($(PY) -m megatron_ext plan $(SFT_RECIPE) --json | $(PY) -c 'import json, sys; print(json.load(sys.stdin)["stage_id"])'); \
	  echo "$(PY) -m megatron_ext generate $$stage --chat --prompt …"; \
	  $(PY) -m megatron_ext generate $$stage --chat --max-new-tokens 160 --prompt $$'$(DEMO_PROMPT)'
	@echo; echo "== 9/10 the form of an answer, with random ones; then rewards: the last digit of a number"
	OMP_NUM_THREADS=$(DEMO_THREADS) $(PY) -m torch.distributed.run --standalone --nproc-per-node $(DEMO_PROCESSES) -m megatron_ext.run $(FORM_RECIPE)
	OMP_NUM_THREADS=$(DEMO_THREADS) $(PY) -m torch.distributed.run --standalone --nproc-per-node $(DEMO_PROCESSES) -m megatron_ext.run $(RL_RECIPE)
	@echo; echo "== 10/10 what it answered in the first step and in the last"
	@stage=runs/stages/$$($(PY) -m megatron_ext plan $(RL_RECIPE) --json | $(PY) -c 'import json, sys; print(json.load(sys.stdin)["stage_id"])'); \
	  for step in 1 80; do $(PY) -m megatron_ext rollouts $$stage --step $$step --best 1 --worst 1; done
	@echo; echo "== right answers to 128 held-out numbers, before rewards (A) and after (B)"
	@form=runs/stages/$$($(PY) -m megatron_ext plan $(FORM_RECIPE) --json | $(PY) -c 'import json, sys; print(json.load(sys.stdin)["stage_id"])'); \
	  rl=runs/stages/$$($(PY) -m megatron_ext plan $(RL_RECIPE) --json | $(PY) -c 'import json, sys; print(json.load(sys.stdin)["stage_id"])'); \
	  for stage in $$form $$rl; do $(PY) -m megatron_ext evaluate $$stage --tasks verifiable:$$rl --name $${rl##*/} \
	    --set samples=4 --set temperature=1 --set max_new_tokens=6 > /dev/null || exit 1; done; \
	  $(PY) -m megatron_ext evaluate --show $$form/evaluations/$${rl##*/} $$rl/evaluations/$${rl##*/}
	@echo; echo "What to try next:"
	@echo "  $(PY) -m megatron_ext show $(RECIPE) --explain data.blend"
	@echo "  $(PY) -m megatron_ext plan $(RECIPE) --set budget.tokens=2M"
	@echo "  docs/tutorials/first-run.md walks through what just happened"

# The miniature study. SIZE=gpu is the larger form; it reads larger samples of reasoning, in a folder of their own.
SIZE ?= cpu
IS_GPU := $(filter gpu,$(SIZE))
MINI_STUDY := recipes/miniature/study$(if $(IS_GPU),_gpu).yaml
MINI_DATA := data/miniature
MINI_SETS := mini_base mini_ldq mini_shq
MINI_PROMPTS := mini_general mini_math mini_code mini_new mini_rl
MINI_TESTS = $(foreach set,general math code new,$(MINI_DATA)/raw/mini_$(set).jsonl)
MINI_READ := text facts $(if $(IS_GPU),gpu_)ldq $(if $(IS_GPU),gpu_)shq
MINI_WORKERS ?= $(if $(IS_GPU),1,$(CORES))
RESULTS ?= runs/studies/miniature$(if $(IS_GPU),_gpu)

.PHONY: miniature-data
miniature-data: $(STAMP) ## the data of the miniature study: samples, tokenizer, tokens, conversations, what they share with the tests (about 1 minute)
	$(PY) -m data_tools sample --out $(MINI_DATA)/raw --size full --only base
	$(PY) -m data_tools sample --out $(MINI_DATA)/raw --only $(subst $(SPACE),$(COMMA),$(MINI_SETS) $(MINI_PROMPTS))
	$(PY) -m data_tools train-tokenizer --input $(foreach set,base $(MINI_SETS),$(MINI_DATA)/raw/$(set).jsonl) --vocab-size 1024 --out $(MINI_DATA)/tokenizer
	@mkdir -p $(MINI_DATA)/tokens
	$(foreach part,base base.validation mini_base mini_base.validation,$(call mini_tokens,$(part),$(MINI_DATA)))
	$(call mini_sets,$(MINI_DATA))
	$(if $(IS_GPU),$(PY) -m data_tools sample --out $(MINI_DATA)/gpu/raw --size full --only mini_ldq$(COMMA)mini_shq)
	$(if $(IS_GPU),$(call mini_sets,$(MINI_DATA)/gpu))
	$(foreach source,$(MINI_READ),$(call mini_overlap,recipes/sources/miniature_$(source).yaml,$(source)))
	$(call mini_overlap,$(MINI_DATA)/raw/mini_rl.jsonl,rl)

.PHONY: miniature
miniature: miniature-data ## the paper's findings in miniature: data, plan, run, report; interrupted, it goes on (about 2 hours on 2 cores)
	$(PY) -m megatron_ext study plan $(MINI_STUDY)
	OMP_NUM_THREADS=1 $(PY) -m megatron_ext study run $(MINI_STUDY) --workers $(MINI_WORKERS)
	$(PY) -m megatron_ext study report $(MINI_STUDY) --format json -o $(RESULTS)/results.json
	$(PY) -m megatron_ext study report $(MINI_STUDY) -o $(RESULTS)/report.html

.PHONY: clean
clean: ## remove caches and build output; data/, runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
