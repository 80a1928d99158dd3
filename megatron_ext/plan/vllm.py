"""The vLLM servers that sample for an rl stage: how each must be started.

A hybrid keeps an SSM state that is added to at every token, so its cache is float32. Cached prefixes are off: those of
the weights before would be read after a push. As many texts at once as the stage sends, and no more: each holds a state
whatever its length. (Source of the options: vLLM 0.33.0, `engine/arg_utils.py`; of the places where a server says
them, `config/{model,cache,scheduler}.py`.)
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from megatron_ext.plan.rollout import slots_in_use
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.layer_pattern import MAMBA
from megatron_ext.recipe.schema import RlRecipe

SERVERS = "MEGATRON_EXT_VLLM_SERVERS"
"""Environment variable: addresses of the servers, with commas between them."""

OLDEST_VERSION = (0, 33)
"""Of vLLM: from here on answers say which weights made them (0.32.0 ignores the question)."""

UNTRIED = "it has not met a GPU yet"
"""What a user should know of this engine."""


class Preset(NamedTuple):
    """An option of `vllm serve`, and where a server says how it was set."""

    option: str
    section: str
    key: str
    value: str | bool


def presets(plan: StagePlan) -> list[Preset]:
    """Options that decide what is sampled, or what is said of it."""
    assert plan.rl is not None, "servers sample for an rl stage"
    dtype = "bfloat16" if plan.precision == "bf16" else "float32"
    mode = log_probs_mode(plan.rl.options)
    found = [
        Preset(f"--dtype {dtype}", "model_config", "dtype", f"torch.{dtype}"),
        Preset(f"--logprobs-mode {mode}", "model_config", "logprobs_mode", mode),
        Preset("--generation-config vllm", "model_config", "generation_config", "vllm"),
        Preset("--no-enable-prefix-caching", "cache_config", "enable_prefix_caching", False),
    ]
    if MAMBA in plan.layout.hybrid_layer_pattern:
        found.append(Preset("--mamba-ssm-cache-dtype float32", "cache_config", "mamba_ssm_cache_dtype", "float32"))
    return found


def log_probs_mode(rl: RlRecipe) -> str:
    """Before everything where the temperature is 1: what top-k and top-p leave out stays in the normaliser then."""
    return "raw_logprobs" if rl.temperature == 1 else "processed_logprobs"


def serve_lines(plan: StagePlan, *, run_root: Path) -> list[str]:
    """Commands that start a server with the weights that the stage begins with, and name it to the run."""
    assert plan.rl is not None, "servers sample for an rl stage"
    rl = plan.rl.options
    parent = run_root / "stages" / plan.init_from.stage_id if plan.init_from is not None else Path("STAGE")
    slots_of_all = rl.slots * plan.layout.data_parallel_size
    at_once = slots_in_use(rl.model_copy(update={"slots": slots_of_all}), plan.batch)
    options = [
        *(preset.option for preset in presets(plan)),
        f"--max-model-len {rl.max_prompt_tokens + rl.max_new_tokens}",
        f"--max-num-seqs {at_once}",
    ]
    return [
        f"megatron-ext export {shlex.quote(str(parent))} --to policy",
        f"VLLM_SERVER_DEV_MODE=1 vllm serve policy {' '.join(options)}",
        f"export {SERVERS}=http://HOST:8000",
    ]
