"""What will happen: the frozen, hashed, printable plan of one stage.

`meaning` is what a stage *is*; its hash is the stage's id. Everything else (layout, micro-batch,
backend, logging, checkpoint and validation cadence, paths) is recorded and may change between two
runs of the same stage.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from megatron_ext.plan.domains import DomainsKnown
from megatron_ext.recipe.fp8_schema import Fp8Recipe
from megatron_ext.recipe.schema import (
    UNRESOLVED,
    LoggingRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Precision,
    RlRecipe,
    SftRecipe,
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
    tp_comm_overlap: bool = False
    use_distributed_optimizer: bool
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
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
    tokens_before: int = 0  # of the stages that this one continues
    requested_tokens_before: int = 0  # what these stages were asked for, before rounding

    @property
    def ramp_samples(self) -> int:
        """Samples of the steps that are smaller than `global_batch_size`."""
        full_steps = self.total_steps - (self.ramp[-1][0] - 1 if self.ramp else 0)
        return self.total_samples - full_steps * self.global_batch_size

    @property
    def end_tokens(self) -> int:
        """Tokens of the chain up to the end of this stage."""
        return self.tokens_before + self.total_tokens

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
        left = self.total_samples - consumed_samples
        return min(self.global_batch_size, left) if left > 0 else self.global_batch_size


class PhaseSource(PlanPart):
    """What one source gives to one phase."""

    source: str
    share: float
    samples: int  # the samples of all sources sum to the phase's
    max_epochs: float  # over the chain up to the end of this phase
    tokens_before: int = 0  # read in earlier phases, and in the stages that this one continues
    cursor: Literal["continue", "fresh", "replay"] = "continue"


class PhasePlan(PlanPart):
    """A stretch of the stage with one blend; it ends at the end of a step."""

    samples: int
    sources: tuple[PhaseSource, ...]  # in the order of its blend: where two are equally due, the first gives


class PackedPlan(PlanPart):
    """The packed rows of one pass over a source: fields of `packed_rows.RowCounts`, and what made them."""

    long_documents: Literal["split", "truncate", "trim-thinking", "drop"] = "split"  # of this source: `policy_for`
    rows: int
    documents: int
    pieces: int
    tokens: int
    unlabelled: int
    split: int
    cut: int
    cut_tokens: int
    dropped: int
    dropped_tokens: int


class SourcePlan(PlanPart):
    """What one source gives to this stage, in all its phases."""

    source: str
    domain: str
    domain_shares: tuple[tuple[str, float], ...] = ()  # of its tokens; () where all of it is `domain`
    domains_known: DomainsKnown = "declared"
    prefix: str  # resolved path
    validation_prefix: str  # resolved path
    data_id: str  # identity of the tokenised content, as it is stored: StoredDataset.data_id
    validation_data_id: str
    documents: int
    tokens: int
    share: float
    samples: int  # of total_samples; the samples of all sources sum to it. Of an sft stage conversations to read
    epochs: float
    max_epochs: float  # of the last phase that reads it
    tokens_before: int = 0  # read in the stages that this one continues
    is_declared: bool  # tokens as the source file says; not built yet, so the ids are made up of name and size
    packed: PackedPlan | None = None  # None: samples are cut from the documents laid end to end
    licence: str = ""  # terms of its raw data, as its source file states them
    revision: str = ""  # of its raw data, likewise
    available_at: str = ""  # where its raw data is had, likewise

    def pass_tokens(self, sequence_length: int) -> int:
        """Processed tokens of one pass over the source: of packed rows their padding too."""
        return self.packed.rows * sequence_length if self.packed is not None else self.tokens


class DataPlan(PlanPart):
    """What is read."""

    tokenizer: str  # resolved folder
    tokenizer_fingerprint: str  # "" where the tokenizer is not built yet; then the ids below are the model's and -1
    tokenizer_vocab_size: int
    eod_id: int
    sources: tuple[SourcePlan, ...]
    phases: tuple[PhasePlan, ...] = ()  # () where the sources above are the only blend
    document_isolation: Literal["none", "attention", "full"]
    packing: Literal["none", "best_fit"] = "none"
    long_documents: Literal["split", "truncate", "trim-thinking", "drop"] = "split"
    store: str = ""  # run root whose prepared/ holds the counts of packed rows; "" where nothing is packed

    def all_phases(self) -> tuple[PhasePlan, ...]:
        """The phases; one of all sources where none are written down."""
        if self.phases:
            return self.phases
        keys = PhaseSource.model_fields.keys() & SourcePlan.model_fields.keys()
        sources = tuple(PhaseSource(**source.model_dump(include=set(keys))) for source in self.sources)
        return (PhasePlan(samples=sum(source.samples for source in sources), sources=sources),)

    @property
    def is_provisional(self) -> bool:
        """Whether a size is declared instead of counted: the plan can be read, not run."""
        return any(source.is_declared for source in self.sources)


class SftSource(PlanPart):
    """What became of the conversations of one source, each counted as often as it is read."""

    source: str
    has_turns: bool | None  # False: text, of which every token is trained on; None: not built yet
    conversations: int  # read
    distinct: int
    tokens: int  # of them, before anything is cut
    packed_tokens: int  # in rows
    trained_tokens: int
    pieces: int
    dropped: int  # conversations, as are the next three
    truncated: int
    trimmed: int
    split: int
    untrained: int  # pieces left out


class SftPlan(PlanPart):
    """The packed rows of an sft stage; which they are follows from sources, seed, batch and these options."""

    options: SftRecipe
    store: str  # run root whose store may hold the rows
    rows: int
    pieces: int
    trained_tokens: int
    padding: int  # positions of rows that hold no token
    most_rows_of_step: int
    sources: tuple[SftSource, ...]
    chat_template: str  # path of the file that holds the template; "" where no source has turns
    chat_template_sha256: str


class RlSource(PlanPart):
    """The prompts of one source; what is not known of declared ones is 0."""

    source: str
    file_sha256: str = ""
    prompts: int  # in the set
    usable: int = 0  # of the file, held-out ones among them where they are its own
    held_out: int
    overlong: int = 0  # left out
    unusable: int = 0  # left out
    prompt_tokens: int = 0  # of the set
    longest_prompt: int = 0
    domains: tuple[tuple[str, int], ...] = ()


class RlPlan(PlanPart):
    """The prompts of an rl stage; which they are follows from files, seed and these options."""

    options: RlRecipe
    data_root: str  # that the files are relative to
    max_sampled_tokens: int  # behind which the stage ends early; 0: never
    sources: tuple[RlSource, ...]
    chat_template: str  # path of the file that holds the template
    chat_template_sha256: str

    @property
    def has_reference(self) -> bool:
        """Whether a frozen copy of the first weights is kept."""
        return self.options.kl.coefficient > 0


class SchedulePlan(PlanPart):
    """The learning rate over consumed samples, of the sequence length of the chain's first stage."""

    style: Literal["wsd", "cosine", "linear", "constant"]
    decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"]
    warmup_samples: int
    decay_samples: int  # wsd: samples of the final decay; else horizon - warmup
    horizon_samples: int  # of the whole chain
    sample_tokens: int  # of one of these samples
    horizon_tokens: int | None = None  # as asked in the chain's first stage; None: its budget


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
    cuda_graphs: bool = False
    deterministic: bool = False
    gc_interval_steps: int = 0  # 0: when Python wants to
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
    reference: int = 0  # rl: the frozen copy of the first weights
    caches: int = 0  # rl: of the slots that are sampled at once
    fp8_weights: int = 0  # copies of weights in 8 bits

    @property
    def total(self) -> int:
        """All of it; temporary buffers of kernels and communication come on top."""
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.reference
            + self.caches
            + self.fp8_weights
        )


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


class SourceRead(PlanPart):
    """What a chain has read of one source."""

    source: str
    domain: str
    data_id: str
    tokens: int  # that it has
    tokens_read: int
    passes: float  # that tokens_read makes; rows are padded, so of a packed source not tokens_read / tokens
    is_moved: bool  # fresh or replay moved its cursor, so that the next tokens in its order may have been read before
    sequence_lengths: tuple[int, ...]  # at which its order is cut, the last one last; () at its beginning
    passes_before_anew: float = 0.0  # read before a stage of the chain began anew with weights; not in tokens_read


class ChainStage(PlanPart):
    """One finished stage of a chain."""

    stage_id: str
    recipe: str
    total_steps: int
    total_tokens: int
    gives: Literal["everything", "weights"] = "everything"  # to the stage after it


class ParentPlan(PlanPart):
    """What lies behind a stage that continues another, or begins with its weights."""

    chain: tuple[ChainStage, ...]  # oldest first; the last one is the parent
    sources: tuple[SourceRead, ...]  # of the whole chain

    @property
    def stage_id(self) -> str:
        """The stage that is taken up."""
        return self.chain[-1].stage_id

    @property
    def is_provisional(self) -> bool:
        """Whether a stage of the chain was planned from declared sizes."""
        return any("-provisional-" in stage.stage_id for stage in self.chain)


class NewToken(PlanPart):
    """A token that the weights of another stage do not know."""

    token: str
    id: int


class NewTokensPlan(PlanPart):
    """How a vocabulary grows from the stage that gives the weights: `models/new_rows.py` fills the new rows."""

    tokens: tuple[NewToken, ...]  # ids ascending; () where the padded vocabulary alone grows
    known_tokenizer_fingerprint: str  # of the tokenizer that the weights read with
    known_vocab_size: int  # its largest id + 1: the rows below are averaged
    unused_ids: tuple[int, ...] = ()  # but those of ids that no token has
    known_rows: int  # padded vocabulary of the weights
    rows: int  # of this stage
    rule: Literal["mean"] = "mean"


class StagePlan(PlanPart):
    """One stage, decided."""

    stage: Literal["pretrain", "sft", "rl", "import"]  # import: weights from elsewhere, with no step of their own
    stage_id: str  # f"{stage}-{16 hex digits of sha256(meaning)}"; f"{stage}-provisional-{…}" while data is declared
    recipe: str  # path of the recipe, as given
    parent: ParentPlan | None = None  # the stage that this one continues
    init_from: ParentPlan | None = None  # the stage that gives its weights and nothing else
    new_tokens: NewTokensPlan | None = None  # that its weights have no rows for; None: the vocabulary is theirs
    model: ModelRecipe
    model_size: ModelSize
    data: DataPlan
    sft: SftPlan | None = None  # of stage sft
    rl: RlPlan | None = None  # of stage rl
    batch: BatchPlan
    schedule: SchedulePlan
    optimizer: OptimizerRecipe
    precision: Precision
    fp8: Fp8Recipe | None = None
    seed: int
    layout: LayoutPlan
    cadence: CadencePlan
    execution: ExecutionPlan = ExecutionPlan()
    cost: CostPlan | None = None  # None in plans that were not made from a recipe
    logging: LoggingRecipe
    roundings: tuple[str, ...]  # one sentence for each number that had to be rounded
    meaning: dict[str, Any]

    @property
    def has_layer_graphs(self) -> bool:
        """Whether layers train as CUDA graphs."""
        return self.execution.cuda_graphs and self.stage == "pretrain"

    @property
    def has_sampling_graphs(self) -> bool:
        """Whether steps of sampling are CUDA graphs."""
        return self.execution.cuda_graphs and self.stage == "rl"

    @property
    def behind(self) -> ParentPlan | None:
        """The stages before this one, whatever the last of them gives to it."""
        return self.parent or self.init_from

    @property
    def awaits_weights(self) -> bool:
        """Whether nobody has named the stage that is to give the weights: the plan can be read, not run."""
        return bool(self.meaning.get("init_from") == UNRESOLVED)
