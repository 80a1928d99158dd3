"""The plan of a stage that was never trained here: a model whose weights came from elsewhere.

It is a stage of its own kind, `import`: no steps, no sources, no schedule to go on with, so other stages can begin
with its weights (`init_from`) and none can continue it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_tools.tokenizer import TokenizerFacts
from megatron_ext.plan.meaning import model_meaning, stage_id
from megatron_ext.plan.sizes import model_size
from megatron_ext.plan.stage_plan import (
    SEMANTICS_VERSION,
    BatchPlan,
    CadencePlan,
    DataPlan,
    LayoutPlan,
    SchedulePlan,
    StagePlan,
)
from megatron_ext.recipe.schema import LoggingRecipe, ModelRecipe, OptimizerRecipe, Precision


def plan_of(
    model: ModelRecipe,
    padded_vocab_size: int,
    tokenizer: Path,
    facts: TokenizerFacts,
    *,
    sequence_length: int,
    precision: Precision = "fp32",
    origin: str = "",
    weights_sha256: str = "",
    chat_template: str | None = None,
) -> StagePlan:
    """Plans a stage that holds a model and does nothing.

    Args:
        model: The model.
        padded_vocab_size: Rows of its embedding.
        tokenizer: Folder of the tokenizer that its ids are of.
        facts: Of the tokenizer.
        sequence_length: Longest text that it has seen.
        precision: Of the weights.
        origin: Where they come from, in the place of a recipe.
        weights_sha256: Their identity.
        chat_template: Of the tokenizer; stages that begin with this one are taught in it.
    """
    meaning = {
        "stage": "import",
        "semantics_version": SEMANTICS_VERSION,
        "model": model_meaning(model),
        "data": {"tokenizer_fingerprint": facts.fingerprint, "chat_template": chat_template},
        "precision": precision,
        "weights_sha256": weights_sha256,
    }
    return StagePlan(
        stage="import",
        stage_id=stage_id(meaning),
        recipe=origin,
        model=model,
        model_size=model_size(model).model_copy(update={"padded_vocab_size": padded_vocab_size}),
        data=DataPlan(
            tokenizer=str(tokenizer),
            tokenizer_fingerprint=facts.fingerprint,
            tokenizer_vocab_size=facts.vocab_size,
            eod_id=facts.eod_id,
            sources=(),
            document_isolation="none",
        ),
        optimizer=OptimizerRecipe(lr=1.0, min_lr=0.0),  # of no step; a plan must name one
        precision=precision,
        seed=0,
        logging=LoggingRecipe(tensorboard=False),
        roundings=(),
        meaning=meaning,
        **_nothing_to_do(model, sequence_length),
    )


def _nothing_to_do(model: ModelRecipe, sequence_length: int) -> dict[str, Any]:
    """Batch, schedule, layout and cadence of no step at all, on one rank."""
    return {
        "batch": BatchPlan(
            sequence_length=sequence_length,
            global_batch_size=1,
            micro_batch_size=1,
            num_microbatches=1,
            requested_tokens=0,
            tokens_per_step=sequence_length,
            total_steps=0,
            total_samples=0,
            total_tokens=0,
            max_steps=None,
        ),
        "schedule": SchedulePlan(
            style="constant",
            decay_style="linear",
            warmup_samples=0,
            decay_samples=0,
            horizon_samples=0,
            sample_tokens=sequence_length,
        ),
        "layout": LayoutPlan(
            world_size=1,
            tensor_model_parallel_size=1,
            pipeline_model_parallel_size=1,
            data_parallel_size=1,
            sequence_parallel=False,
            use_distributed_optimizer=False,
            hybrid_layer_pattern=model.hybrid_layer_pattern.replace("|", ""),
            backend="auto",
        ),
        "cadence": CadencePlan(
            validation_interval_steps=1,
            validation_samples=0,
            checkpoint_interval_steps=1,
            checkpoint_keep_last=1,
            checkpoint_keep_every_steps=None,
        ),
    }
