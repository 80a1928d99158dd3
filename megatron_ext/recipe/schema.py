"""What was asked: the frozen schema of a recipe.

Every field stands here once, with its unit in its name or its description; `show --explain KEY`
prints these descriptions. Values that the study's paper does not state carry a comment in the
recipe that sets them, not here. Sources and blends, which data_tools reads too, stand in `data_tools.schema`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from data_tools.drawing import DrawRule
from data_tools.pack_rows import BatchUnit
from data_tools.packing import Overlong
from data_tools.schema import BlendRecipe as BlendRecipe
from data_tools.schema import Count, Number, refuse_floor_above
from data_tools.schema import Section as Section
from data_tools.schema import SourceRecipe as SourceRecipe
from megatron_ext.recipe.fp8_schema import Fp8Recipe as Fp8Recipe
from megatron_ext.recipe.layer_pattern import parse_pattern
from megatron_ext.recipe.rl_schema import PromptSource as PromptSource
from megatron_ext.recipe.rl_schema import RlRecipe as RlRecipe
from megatron_ext.recipe.site_schema import SiteRecipe as SiteRecipe

Precision = Literal["fp32", "bf16"]

PLACEMENT_KEYS = frozenset(
    {
        "model.name",
        "data.blend.max_epochs",
        "data.blend.min_epochs",
        "data.phases.blend.max_epochs",
        "data.phases.blend.min_epochs",
        "sft.untrained",
        "rl.max_epochs",
        "rl.mismatch_threshold",
        "rl.overlong_prompts",
        "rl.prompts.available_at",
        "rl.prompts.build",
        "rl.prompts.declared_prompts",
        "rl.prompts.licence",
        "rl.prompts.revision",
        "rl.prompts.source",
        "rl.rewards.on_error",
        "rl.slots",
        "rl.unusable_prompts",
        "rl.validation_samples",
        "training.micro_batch_size",
        "training.max_steps",
        "training.validation_interval_tokens",
        "training.validation_tokens",
        "training.backend",
        "training.recompute",
        "training.recompute_modules",
        "training.recompute_num_layers",
        "training.cuda_graphs",
        "training.deterministic",
        "training.gc_interval_steps",
        "training.max_skipped_steps",
        "parallel",
        "checkpoint",
        "logging",
        "profile",
    }
)
"""Keys and sections that are recorded but leave a stage what it is; all others are its meaning."""

CONTENT_KEYS = frozenset(
    {"continue", "init_from", "data.tokenizer", "data.blend.source", "data.phases.blend.source", "rl.prompts.file"}
)
"""Paths: what stands behind them is part of the meaning, where it stands is not."""

UNRESOLVED = "unresolved"
"""`init_from` of a stage whose parent an arm, or `--set`, will name."""


class ModelRecipe(Section):
    """A hybrid of Mamba-2, attention and MLP layers, in Megatron-Core's words."""

    name: str = Field(description="Name of the model, for people; not part of its meaning.")
    hybrid_layer_pattern: str = Field(
        description="One symbol a layer: M Mamba-2, * attention, - MLP; | cuts pipeline stages."
    )
    hidden_size: Count = Field(gt=0, description="Width of the residual stream.")
    vocab_size: Count = Field(gt=0, description="Token ids that the model must hold, before padding.")
    ffn_hidden_size: Count = Field(default=0, ge=0, description="Inner width of an MLP layer.")
    num_attention_heads: Count = Field(gt=0, description="Query heads of an attention layer.")
    num_query_groups: Count = Field(gt=0, description="Key/value heads (GQA); divides num_attention_heads.")
    kv_channels: Count = Field(gt=0, description="Width of one attention head.")
    mamba_num_heads: Count = Field(default=0, ge=0, description="Heads of a Mamba-2 layer.")
    mamba_head_dim: Count = Field(default=64, gt=0, description="Width of one Mamba-2 head.")
    mamba_state_dim: Count = Field(default=128, gt=0, description="SSM state per channel (N).")
    mamba_num_groups: Count = Field(default=8, gt=0, description="Groups that share B and C; divides mamba_num_heads.")
    activation: Literal["squared_relu"] = Field(
        default="squared_relu", description="MLP activation; squared ReLU, not gated, as in Nemotron-H."
    )
    position_embedding_type: Literal["none", "rope"] = Field(
        default="none", description="Positions in attention; Nemotron-H uses none."
    )
    rotary_base: Count = Field(
        default=10_000, gt=0, description="RoPE base; read only with position_embedding_type rope."
    )
    share_embeddings_and_output_weights: bool = Field(
        default=False, description="Whether input embedding and output layer are one matrix (tied)."
    )
    layernorm_epsilon: Number = Field(default=1e-5, gt=0, description="Epsilon of every RMSNorm.")
    init_method_std: Number = Field(
        default=0.02, gt=0, description="Standard deviation of weight matrices at initialisation."
    )

    @field_validator("hybrid_layer_pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        parse_pattern(pattern)
        return pattern


class BlendEntry(Section):
    """One source, or one blend of sources, and its share of the processed tokens."""

    source: str = Field(
        description="Path of a file under recipes/sources or recipes/blends, relative to this file; a blend divides "
        "the share among its sources by its own weighting."
    )
    share: Number = Field(gt=0, le=1, description="Share of the processed tokens, in (0, 1].")
    max_epochs: Number = Field(
        default=1,
        gt=0,
        description="Passes over each source below that may be read at most, counted from the start of the chain.",
    )
    min_epochs: Number = Field(
        default=0,
        ge=0,
        description="Passes over each source below that must be read by the end of this blend, counted from the start "
        "of the chain.",
    )
    cursor: Literal["continue", "fresh", "replay"] = Field(
        default="continue",
        description="Where sources go on that were read before: continue behind it, fresh at the next pass (what is "
        "left of this one is not read), replay from their beginning.",
    )

    @model_validator(mode="after")
    def _check_floor(self) -> Self:
        refuse_floor_above(self.min_epochs, self.max_epochs)
        return self


class PhaseRecipe(Section):
    """A stretch of a stage with a blend of its own."""

    tokens: Count = Field(gt=0, description="Processed tokens of this phase; its end is rounded to a whole step.")
    blend: tuple[BlendEntry, ...] = Field(min_length=1, description="Sources and shares; the shares sum to 1.")


class DataRecipe(Section):
    """What is read."""

    tokenizer: str = Field(description="Folder with tokenizer.json, relative to the site's data_root.")
    blend: tuple[BlendEntry, ...] | None = Field(
        default=None, min_length=1, description="Sources and shares of the whole stage; the shares sum to 1."
    )
    phases: tuple[PhaseRecipe, ...] | None = Field(
        default=None, min_length=1, description="Instead of blend: blends one after another."
    )
    document_isolation: Literal["none", "attention", "full"] = Field(
        default="none",
        description="What stops at a document's end: nothing (Megatron's default), attention, or attention, "
        "convolution and state.",
    )
    packing: Literal["none", "best_fit"] = Field(
        default="none",
        description="How documents share rows: cut from documents laid end to end (none), or whole in rows that "
        "end in padding (best_fit).",
    )
    long_documents: Literal["split", "truncate", "trim-thinking", "drop"] = Field(
        default="split",
        description="best_fit only: what becomes of documents longer than a row: pieces of a row's length and a rest, "
        "their first tokens, all but the tail of their thinking, nothing.",
    )


class BudgetRecipe(Section):
    """How much is read."""

    tokens: Count = Field(
        default=0,
        ge=0,
        description="pretrain: processed tokens of this stage; rounded to whole steps as planned. rl: sampled tokens "
        "behind which it ends early; 0: none.",
    )
    examples: Count = Field(
        default=0, ge=0, description="sft: conversations to draw from the blend; every one is read sft.passes times."
    )
    steps: Count = Field(default=0, ge=0, description="rl: steps of training.global_batch_size prompts.")
    prompts: Count = Field(default=0, ge=0, description="rl, instead of steps: prompts to sample; whole steps of them.")
    epochs: Number = Field(
        default=0, ge=0, description="rl, instead of steps: passes over the prompt set; whole steps of them."
    )


class SftRecipe(Section):
    """Which conversations an sft stage reads, how they share rows, and what they weigh."""

    draw: DrawRule = Field(
        default="without_replacement",
        description="Whether a source gives each conversation once before any comes again, or draws each from all.",
    )
    passes: Count = Field(
        default=1, gt=0, description="How often every drawn conversation is read, in rows of another order each time."
    )
    overlong: Overlong = Field(
        default="error", description="What becomes of conversations longer than training.sequence_length."
    )
    untrained: Literal["error", "skip"] = Field(
        default="error",
        description="What becomes of conversations, or pieces, of which no token would be trained on: refused, or left "
        "out and counted.",
    )
    batch_unit: BatchUnit = Field(
        default="rows",
        description="What training.global_batch_size counts: rows, or conversations, of which every step holds exactly "
        "so many in as many rows as they need.",
    )
    pad_multiple: Count = Field(
        default=1,
        gt=0,
        description="Tokens to a multiple of which each conversation is padded in its row; with context parallelism a "
        "multiple of twice its size.",
    )
    loss: Literal["token", "sample"] = Field(
        default="token",
        description="What weighs the same in a step: every trained token, or every conversation (piece, if split).",
    )
    loss_switch_tokens: Count | None = Field(
        default=None,
        gt=0,
        description="Trained tokens after which the other one of loss is taken, from the next step on; null: never.",
    )


class TrainingRecipe(Section):
    """How one step is made."""

    sequence_length: Count = Field(gt=0, description="Tokens of one sample.")
    global_batch_size: Count = Field(
        gt=0,
        description="Samples of one step, over all ranks; in an sft stage rows or conversations (sft.batch_unit), in "
        "an rl stage prompts.",
    )
    micro_batch_size: Count = Field(default=1, gt=0, description="Samples of one forward pass on one rank; not hashed.")
    max_steps: Count | None = Field(
        default=None, gt=0, description="Cut for trials: stop after this step; not hashed; writes no stage.json."
    )
    validation_interval_tokens: Count = Field(gt=0, description="Processed tokens between validations; not hashed.")
    validation_tokens: Count = Field(
        default=0,
        ge=0,
        description="pretrain, sft: held-out tokens read per source at each validation, at least 1 there; "
        "rl has rl.validation_samples; not hashed.",
    )
    ramp_tokens: Count = Field(
        default=0, ge=0, description="Processed tokens over which the batch grows to global_batch_size; 0: no ramp."
    )
    ramp_start_batch_size: Count | None = Field(default=None, gt=0, description="Samples of the ramp's first steps.")
    ramp_increment: Count | None = Field(default=None, gt=0, description="Samples by which each ramp stage grows.")
    backend: Literal["auto", "local", "te"] = Field(
        default="auto",
        description="Layers of plain torch (local) or of Transformer Engine and mamba-ssm (te); auto takes te where "
        "it can run; not hashed.",
    )
    recompute: Literal["none", "selective", "full"] = Field(
        default="none", description="Activations computed again in the backward pass, to save memory; not hashed."
    )
    recompute_modules: tuple[Literal["core_attn", "mlp"], ...] = Field(
        default=("core_attn",), description="selective only: what is computed again; not hashed."
    )
    recompute_num_layers: Count = Field(
        default=1, gt=0, description="full only: layers between two stored activations; not hashed."
    )
    cuda_graphs: bool = Field(
        default=False,
        description="pretrain (te only): launch each layer's kernels as one CUDA graph from the second step on; rl: "
        "launch a step of sampling as one, where every slot is in use; not hashed.",
    )
    deterministic: bool = Field(
        default=False, description="Only kernels that give the same bits each time, where they exist; not hashed."
    )
    gc_interval_steps: Count = Field(
        default=0,
        ge=0,
        description="Steps between garbage collections, which every rank then makes at once; 0: each rank when Python "
        "wants to, so that one waits for another; not hashed.",
    )
    max_skipped_steps: Count = Field(
        default=0,
        ge=0,
        description="Updates of a stage that may be skipped because loss or gradient is not finite; 0 stops at the "
        "first; not hashed.",
    )


class OptimizerRecipe(Section):
    """AdamW; no weight decay on norms, biases, A_log, D, dt_bias and the convolution.

    Source of the defaults: weight_decay, beta1, beta2: the paper (arXiv 2510.03264 section 3.1); eps:
    torch's AdamW; clip_grad: Megatron-Core's OptimizerConfig.
    """

    lr: Number = Field(gt=0, description="Peak learning rate.")
    min_lr: Number = Field(ge=0, description="Learning rate at the end of the decay.")
    weight_decay: Number = Field(default=0.1, ge=0, description="Decoupled weight decay.")
    beta1: Number = Field(default=0.9, ge=0, lt=1, description="Adam's first moment.")
    beta2: Number = Field(default=0.95, ge=0, lt=1, description="Adam's second moment.")
    eps: Number = Field(default=1e-8, gt=0, description="Adam's epsilon.")
    clip_grad: Number = Field(default=1.0, ge=0, description="Gradient norm to clip at; 0 never clips.")


class ScheduleRecipe(Section):
    """The learning rate over consumed tokens."""

    style: Literal["wsd", "cosine", "linear", "constant"] = Field(
        description="Shape after the warmup: warmup-stable-decay, cosine, linear or constant."
    )
    warmup_tokens: Count = Field(default=0, ge=0, description="Processed tokens of linear warmup from 0.")
    warmup_ratio: Number = Field(
        default=0,
        ge=0,
        lt=1,
        description="Instead of warmup_tokens: the part of the horizon, of one stage or a chain, that is warmup.",
    )
    decay_tokens: Count | None = Field(default=None, gt=0, description="wsd only: tokens of the final decay.")
    horizon_tokens: Count | None = Field(
        default=None,
        gt=0,
        description="Processed tokens at which the decay ends, over this stage and those that continue it; null: "
        "this stage's budget.",
    )
    decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = Field(
        default="linear", description="wsd only: shape of the final decay."
    )


class ParallelRecipe(Section):
    """Where the work is placed; recorded, never hashed."""

    tensor_model_parallel_size: Count = Field(default=1, gt=0, description="Ranks that share one layer (TP).")
    pipeline_model_parallel_size: Count = Field(default=1, gt=0, description="Ranks in the layer chain (PP).")
    context_parallel_size: Count = Field(default=1, gt=0, description="Ranks that share one sequence (CP); te only.")
    sequence_parallel: bool = Field(default=False, description="Split norms and residuals over TP ranks.")
    tp_comm_overlap: bool = Field(
        default=False,
        description="te in pretraining with sequence_parallel only: send parts of a tensor to the TP ranks while "
        "others are multiplied.",
    )
    use_distributed_optimizer: bool = Field(
        default=False, description="Shard optimizer state over data-parallel ranks."
    )
    overlap_grad_reduce: bool = Field(
        default=False, description="Sum gradients over data-parallel ranks while the backward pass goes on."
    )
    overlap_param_gather: bool = Field(
        default=False,
        description="Gather updated weights while the next forward pass goes on; needs use_distributed_optimizer and "
        "overlap_grad_reduce; not in stage rl.",
    )


class CheckpointRecipe(Section):
    """When weights are written and how long they stay; recorded, never hashed."""

    interval_tokens: Count = Field(gt=0, description="Processed tokens between checkpoints.")
    keep_last: Count = Field(default=2, gt=0, description="Newest checkpoints to keep.")
    keep_every_tokens: Count | None = Field(
        default=None, gt=0, description="Also keep one every so many tokens for ever."
    )
    optimizer_format: Literal["fully_reshardable", "dp_reshardable"] = Field(
        default="fully_reshardable",
        description="Distributed optimizer only: state that any layout can resume, or cheaper periodic saves that only "
        "the same layout can; the last save is always fully reshardable.",
    )
    async_save: bool = Field(default=False, description="Write periodic checkpoints while training goes on.")


class LoggingRecipe(Section):
    """Who is told; recorded, never hashed. metrics.jsonl is always written."""

    tensorboard: bool = Field(default=True, description="Write tensorboard events beside metrics.jsonl.")
    wandb_project: str | None = Field(default=None, description="Weights & Biases project; needs the wandb extra.")
    norms_interval_steps: Count = Field(
        default=0, ge=0, description="Steps between norms of weights and gradients by kind of layer; 0: never."
    )
    loss_spike_nats: Number = Field(
        default=1.0, ge=0, description="Warn when the loss is so far above the median of recent steps; 0: never."
    )
    rank_times: bool = Field(default=False, description="Time each rank's part of a step; name ranks that stay slow.")


class ProfileRecipe(Section):
    """A trace of a few steps; recorded, never hashed."""

    steps: str | None = Field(
        default=None,
        pattern=r"^\d+-\d+$",
        description="First and last step of a torch profiler trace: 5-7, or 5-5 for one.",
    )


class Recipe(Section):
    """One stage, complete."""

    stage: Literal["pretrain", "sft", "rl"] = Field(description="What kind of stage this is.")
    parent: str | None = Field(
        default=None,
        alias="continue",
        description="The stage whose weights, optimizer, random states, data cursors and schedule this one takes up: "
        "a recipe, relative to this file, or a stage id of this place's run_root.",
    )
    init_from: str | None = Field(
        default=None,
        description="The stage whose weights this one begins with, and nothing else of it: a recipe, a stage id, or "
        "unresolved while nobody has named it; null: new weights, where stage is pretrain.",
    )
    resize_vocabulary: bool = Field(
        default=False,
        description="init_from only: take a tokenizer that adds tokens to that of the weights. Known tokens keep ids "
        "and rows; each new row of embedding and output layer is the mean of the known ones.",
    )
    model: ModelRecipe
    data: DataRecipe
    budget: BudgetRecipe = BudgetRecipe()
    sft: SftRecipe | None = Field(default=None, description="sft only: how conversations are drawn and packed.")
    rl: RlRecipe | None = Field(default=None, description="rl only: how prompts are sampled, rewarded, learned from.")
    training: TrainingRecipe
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    parallel: ParallelRecipe = ParallelRecipe()
    precision: Precision = Field(default="bf16", description="Numbers of the forward and backward pass.")
    fp8: Fp8Recipe | None = Field(
        default=None, description="te with bf16 only: how the products of its layers are made in fp8; null: not."
    )
    checkpoint: CheckpointRecipe
    logging: LoggingRecipe = LoggingRecipe()
    profile: ProfileRecipe = ProfileRecipe()
    seed: Count = Field(default=1234, ge=0, description="Seed of initialisation and data order.")

    @property
    def awaits_weights(self) -> bool:
        """Whether it begins with weights of a stage that is not named yet; only pretraining begins with new ones."""
        needs_them = self.init_from is None and self.parent is None and self.stage not in ("pretrain",)
        return self.init_from == UNRESOLVED or needs_them
