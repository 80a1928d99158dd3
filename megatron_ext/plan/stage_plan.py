"""What will happen: the frozen, hashed, printable plan of one stage.

`meaning` is what a stage *is*; its hash is the stage's id. Everything else (layout, micro-batch,
backend, logging, checkpoint and validation cadence, paths) is recorded and may change between two
runs of the same stage.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from megatron_ext.recipe.schema import (
    LoggingRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Precision,
)

SEMANTICS_VERSION = 1
"""Part of every stage's meaning; bumped when the same recipe would give other numbers."""


class PlanPart(BaseModel):
    """A frozen part of a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSize(PlanPart):
    """Counted parameters."""

    padded_vocab_size: int
    parameters: dict[str, int]  # by kind: embedding, mamba, attention, mlp, final_norm, output
    total_parameters: int


class LayoutPlan(PlanPart):
    """Which rank does what."""

    world_size: int
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    context_parallel_size: int = 1
    data_parallel_size: int
    sequence_parallel: bool
    use_distributed_optimizer: bool
    hybrid_layer_pattern: str  # with `|` where the pipeline is cut
    backend: Literal["auto", "local", "te"]  # as asked: what auto takes is known where it runs


class BatchPlan(PlanPart):
    """Tokens into samples, samples into steps, steps into microbatches."""

    sequence_length: int
    global_batch_size: int
    micro_batch_size: int
    num_microbatches: int  # of one rank in one step
    requested_tokens: int
    tokens_per_step: int
    total_steps: int
    total_samples: int
    total_tokens: int
    max_steps: int | None
    ramp: tuple[tuple[int, int], ...] = ()  # (first step, samples a step), rising to global_batch_size; () without one

    def batch_size_at(self, consumed_samples: int) -> int:
        """Samples of the step that begins at `consumed_samples`.

        Raises:
            AssertionError: If no step begins there while the batch grows.
        """
        begin = 0
        for (first, rows), (after, _) in pairwise(self.ramp):
            if consumed_samples < begin + (after - first) * rows:
                assert (consumed_samples - begin) % rows == 0, f"no step of the ramp begins at {consumed_samples}"
                return rows
            begin += (after - first) * rows
        return self.global_batch_size


class SourcePlan(PlanPart):
    """What one source gives to this stage."""

    source: str
    domain: str
    prefix: str  # resolved path
    validation_prefix: str  # resolved path
    data_id: str  # identity of the tokenised content: Manifest.data_id
    validation_data_id: str
    documents: int
    tokens: int
    share: float
    samples: int  # of total_samples; the samples of all sources sum to it
    epochs: float
    max_epochs: float
    is_declared: bool  # tokens as the source file says; not built yet, so the ids are made up of name and size


class DataPlan(PlanPart):
    """What is read."""

    tokenizer: str  # resolved folder
    tokenizer_fingerprint: str  # "" where the tokenizer is not built yet; then the ids below are the model's and -1
    tokenizer_vocab_size: int
    eod_id: int
    sources: tuple[SourcePlan, ...]
    document_isolation: Literal["none"]

    @property
    def is_provisional(self) -> bool:
        """Whether a size is declared instead of counted: the plan can be read, not run."""
        return any(source.is_declared for source in self.sources)


class SchedulePlan(PlanPart):
    """The learning rate over consumed samples."""

    style: Literal["wsd", "cosine", "linear", "constant"]
    decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"]
    warmup_samples: int
    decay_samples: int  # wsd: samples of the final decay; else horizon - warmup
    horizon_samples: int


class CadencePlan(PlanPart):
    """What happens every so many steps."""

    validation_interval_steps: int
    validation_samples: int  # per source, at most what the held-out set has
    checkpoint_interval_steps: int
    checkpoint_keep_last: int
    checkpoint_keep_every_steps: int | None


class ExecutionPlan(PlanPart):
    """How steps are computed and saved; recorded, never hashed."""

    recompute: Literal["none", "selective", "full"] = "none"
    recompute_modules: tuple[Literal["core_attn", "mlp"], ...] = ("core_attn",)
    recompute_num_layers: int = 1
    deterministic: bool = False
    max_skipped_steps: int = 0
    profile_steps: tuple[int, int] | None = None  # first and last, from 1
    optimizer_format: Literal["fully_reshardable", "dp_reshardable"] = "fully_reshardable"
    async_save: bool = False


class RankMemory(PlanPart):
    """Bytes of one rank of one pipeline stage: of its fullest data-parallel rank at the fullest moment."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # kept for the backward pass, logits apart
    logits: int
    is_calibrated: bool  # activations were compared with a measurement on this backend

    @property
    def total(self) -> int:
        """All of it; temporary buffers of kernels and communication come on top."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits


class CostPlan(PlanPart):
    """What the stage takes, counted before launch; recorded, never hashed."""

    token_flops: dict[str, int]  # training, of one token: projection, attention, ssd, convolution, output
    recomputed_token_flops: int  # done again for one token; not in token_flops
    pipeline_token_flops: tuple[int, ...]  # token_flops by pipeline stage
    step_flops: int
    total_flops: int
    memory: tuple[RankMemory, ...]  # by pipeline stage
    weights_bytes: int  # of one checkpoint, on disk
    checkpoint_bytes: int  # with optimizer state
    kept_checkpoints: int
    busiest_rank_bytes: int  # that the busiest rank writes at a periodic save
    gathered_bytes: int  # host memory that each rank fills with optimizer state at a periodic save


class StagePlan(PlanPart):
    """One stage, decided."""

    stage: Literal["pretrain"]
    stage_id: str  # f"{stage}-{16 hex digits of sha256(meaning)}"; f"{stage}-provisional-{…}" while data is declared
    recipe: str  # path of the recipe, as given
    model: ModelRecipe
    model_size: ModelSize
    data: DataPlan
    batch: BatchPlan
    schedule: SchedulePlan
    optimizer: OptimizerRecipe
    precision: Precision
    seed: int
    layout: LayoutPlan
    cadence: CadencePlan
    execution: ExecutionPlan = ExecutionPlan()
    cost: CostPlan | None = None  # None in plans that were not made from a recipe
    logging: LoggingRecipe
    roundings: tuple[str, ...]  # one sentence for each number that had to be rounded
    meaning: dict[str, Any]
