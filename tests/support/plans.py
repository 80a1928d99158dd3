"""Small stage plans built without recipe files, data or a tokenizer.

    make_plan()                                                   a 4-layer fp32 hybrid, 10 steps of 4 x 32 tokens
    make_plan(layout={"tensor_model_parallel_size": 2})           parts merge over the defaults
    make_plan(model={"mamba_num_groups": 1}, precision="bf16")    scalars replace them

Numbers that follow from others (world size, microbatches, tokens, samples, horizon) are derived
unless they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from megatron_ext.plan.stage_plan import (
    BatchPlan,
    CadencePlan,
    DataPlan,
    LayoutPlan,
    ModelSize,
    SchedulePlan,
    SourcePlan,
    StagePlan,
)
from megatron_ext.recipe.schema import LoggingRecipe, ModelRecipe, OptimizerRecipe

MODEL: dict[str, Any] = {
    "name": "test",
    "hybrid_layer_pattern": "M-*M",
    "hidden_size": 32,
    "vocab_size": 120,
    "ffn_hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_state_dim": 8,
    "mamba_num_groups": 2,
}
PADDED_VOCAB_SIZE = 128  # far below the product's rule, so that test models stay small


def make_source(**changes: Any) -> SourcePlan:
    """Builds one source that gives all 40 samples of the default plan."""
    values: dict[str, Any] = {
        "source": "toy",
        "domain": "general",
        "prefix": "data/toy",
        "validation_prefix": "data/toy.validation",
        "data_id": "0" * 64,
        "validation_data_id": "1" * 64,
        "documents": 100,
        "tokens": 10_000,
        "share": 1.0,
        "samples": 40,
        "epochs": 0.128,
        "max_epochs": 1.0,
        "is_declared": False,
    }
    return SourcePlan(**(values | changes))


def make_plan(**changes: Any) -> StagePlan:
    """Builds a plan from tiny defaults.

    Args:
        **changes: Fields of `StagePlan`. A mapping merges over the defaults of that part, any
            other value replaces it.
    """
    model = ModelRecipe(**(MODEL | changes.pop("model", {})))
    layout = _layout(model, changes.pop("layout", {}))
    batch = _batch(layout, changes.pop("batch", {}))
    parts: dict[str, Any] = {
        "model_size": {"padded_vocab_size": PADDED_VOCAB_SIZE, "parameters": {}, "total_parameters": 0},
        "data": {
            "tokenizer": "data/tokenizer",
            "tokenizer_fingerprint": "f" * 64,
            "tokenizer_vocab_size": 120,
            "eod_id": 0,
            "sources": (make_source(samples=batch.total_samples),),
            "document_isolation": "none",
        },
        "schedule": {
            "style": "constant",
            "decay_style": "linear",
            "warmup_samples": 0,
            "decay_samples": batch.total_samples,
            "horizon_samples": batch.total_samples,
            "sample_tokens": batch.sequence_length,
        },
        "optimizer": {"lr": 3e-3, "min_lr": 3e-4},
        "cadence": {
            "validation_interval_steps": 5,
            "validation_samples": 4,
            "checkpoint_interval_steps": 5,
            "checkpoint_keep_last": 2,
            "checkpoint_keep_every_steps": None,
        },
        "logging": {"tensorboard": False},
    }
    for name, kind in _KINDS.items():
        given = changes.pop(name, {})
        parts[name] = kind(**(parts[name] | given)) if isinstance(given, Mapping) else given
    scalars: dict[str, Any] = {
        "stage": "pretrain",
        "stage_id": "pretrain-0000000000000000",
        "recipe": "recipes/test.yaml",
        "precision": "fp32",
        "seed": 1234,
        "roundings": (),
        "meaning": {},
    }
    return StagePlan(model=model, layout=layout, batch=batch, **parts, **(scalars | changes))


_KINDS: dict[str, Any] = {
    "model_size": ModelSize,
    "data": DataPlan,
    "schedule": SchedulePlan,
    "optimizer": OptimizerRecipe,
    "cadence": CadencePlan,
    "logging": LoggingRecipe,
}


def _layout(model: ModelRecipe, changes: Mapping[str, Any]) -> LayoutPlan:
    values: dict[str, Any] = {
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "data_parallel_size": 1,
        "sequence_parallel": False,
        "use_distributed_optimizer": False,
        "backend": "local",
    } | dict(changes)
    stages = values["pipeline_model_parallel_size"]
    world_size = values["tensor_model_parallel_size"] * stages * values["data_parallel_size"]
    derived = {"world_size": world_size, "hybrid_layer_pattern": _cut(model.hybrid_layer_pattern, stages)}
    return LayoutPlan(**(derived | values))


def _cut(pattern: str, num_stages: int) -> str:
    """Cuts a pattern into stages of equally many layers; the last one takes the rest."""
    if "|" in pattern or num_stages == 1:
        return pattern
    length = len(pattern) // num_stages
    starts = [stage * length for stage in range(num_stages)] + [len(pattern)]
    return "|".join(pattern[begin:end] for begin, end in pairwise(starts))


def _batch(layout: LayoutPlan, changes: Mapping[str, Any]) -> BatchPlan:
    values: dict[str, Any] = {
        "sequence_length": 32,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "total_steps": 10,
        "max_steps": None,
    } | dict(changes)
    rows, steps = values["global_batch_size"], values["total_steps"]
    tokens_per_step = rows * values["sequence_length"]
    derived = {
        "num_microbatches": rows // (values["micro_batch_size"] * layout.data_parallel_size),
        "requested_tokens": steps * tokens_per_step,
        "tokens_per_step": tokens_per_step,
        "total_samples": steps * rows,
        "total_tokens": steps * tokens_per_step,
    }
    return BatchPlan(**(derived | values))
