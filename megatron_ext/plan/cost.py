"""What a stage takes before it is launched: operations, memory, disk, and GPU-hours where an MFU is stated."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from data_tools.errors import UsageError
from megatron_ext.plan.flops import recomputed_token_flops, stage_token_flops, token_flops
from megatron_ext.plan.hardware import GPUS
from megatron_ext.plan.memory import buffer_sizes, memory_per_rank, stage_parameter_sizes
from megatron_ext.plan.sizes import model_size
from megatron_ext.plan.stage_plan import BatchPlan, CadencePlan, CostPlan, ExecutionPlan, LayoutPlan, StagePlan
from megatron_ext.recipe.fp8_schema import Fp8Recipe
from megatron_ext.recipe.schema import ModelRecipe, RlRecipe

PEAK_TFLOPS = {name: gpu.peak_tflops for name, gpu in GPUS.items()}
"""Dense bf16 peaks in TFLOP/s."""


class GpuTime(NamedTuple):
    """How long a stage takes at a stated MFU."""

    gpu: str
    peak_tflops: float
    mfu: float
    gpu_hours: float
    days: float  # at the plan's world size


@lru_cache(maxsize=64)  # the replicates of a study differ in the seed alone
def plan_cost(
    model: ModelRecipe,
    layout: LayoutPlan,
    batch: BatchPlan,
    cadence: CadencePlan,
    execution: ExecutionPlan,
    *,
    precision: str,
    rl: RlRecipe | None = None,
    fp8: Fp8Recipe | None = None,
) -> CostPlan:
    """Counts operations, memory and disk of a stage."""
    per_token = token_flops(model, batch.sequence_length)
    weight, state = checkpoint_widths(precision, is_distributed=layout.use_distributed_optimizer)
    parameters = model_size(model).total_parameters
    busiest, gathered = _save_bytes(model, layout, execution, weight=weight, state=state)
    return CostPlan(
        token_flops=per_token,
        recomputed_token_flops=recomputed_token_flops(model, execution, batch.sequence_length),
        pipeline_token_flops=stage_token_flops(model, layout, batch.sequence_length),
        step_flops=round(sum(per_token.values()) * batch.tokens_per_step * _passes(rl)),
        total_flops=round(sum(per_token.values()) * batch.total_tokens * _passes(rl)),
        memory=memory_per_rank(model, layout, batch, execution, precision=precision, rl=rl, fp8=fp8),
        weights_bytes=weight * parameters,
        checkpoint_bytes=(weight + state) * parameters,
        kept_checkpoints=_kept_checkpoints(cadence, batch.total_steps),
        busiest_rank_bytes=busiest,
        gathered_bytes=gathered,
    )


def _passes(rl: RlRecipe | None) -> Fraction:
    """How often a token of a step is trained on, or what takes as long.

    An rl stage samples it, scores it with the old policy and, where there is one, with the reference: a forward pass
    each, a third of training (Source: arXiv 2001.08361, section 2.1). Prompts count as if each sample read its own.
    """
    if rl is None:
        return Fraction(1)
    return rl.epochs + Fraction(2 + (rl.kl.coefficient > 0), 3)


def counted_on_gpus(layout: LayoutPlan) -> LayoutPlan:
    """The layout whose memory is counted where GPUs are named: backend `auto` takes `te` where te can run."""
    return layout.model_copy(update={"backend": "te"}) if layout.backend == "auto" else layout


def checkpoint_widths(precision: str, *, is_distributed: bool) -> tuple[int, int]:
    """Bytes a parameter on disk: its weight, and its optimizer state.

    The state is two fp32 moments; bf16 adds the fp32 master weight, and so does the distributed optimizer
    in any precision (Source: core 0.19, `DistributedOptimizer.get_parameter_state_dp_zero`).
    """
    return (2, 12) if precision == "bf16" else (4, 12 if is_distributed else 8)


def _save_bytes(
    model: ModelRecipe, layout: LayoutPlan, execution: ExecutionPlan, *, weight: int, state: int
) -> tuple[int, int]:
    """What the busiest rank writes and what each rank gathers at a periodic save.

    The first data-parallel rank writes the weights of its model-parallel shard and, unless every rank
    writes its own shard of the state, padding included (`dp_reshardable`), the whole state too.
    `fully_reshardable` first gathers the state of the shard, gaps of the buffer included, into host memory of
    every rank (Source: core 0.19, `DistributedOptimizer.sharded_param_state_fully_reshardable`).
    """
    is_sharded = layout.use_distributed_optimizer
    busiest = gathered = 0
    for stage in range(layout.pipeline_model_parallel_size):
        sizes = stage_parameter_sizes(model, layout, stage)
        is_copy = stage > 0 and model.share_embeddings_and_output_weights  # the first stage writes it
        numel = sum(size.numel for size in sizes if not (is_copy and size.name == "output_layer"))
        owned = numel
        if is_sharded:
            padded, unpadded, _ = buffer_sizes(model, layout, stage)
            if execution.optimizer_format == "dp_reshardable":
                owned = padded // (layout.data_parallel_size * layout.context_parallel_size)
            else:
                gathered = max(gathered, state * unpadded)
        busiest = max(busiest, weight * numel + state * owned)
    return busiest, gathered


def _kept_checkpoints(cadence: CadencePlan, total_steps: int) -> int:
    """Checkpoints on disk when the stage is finished; one more while the next is written."""
    steps = [*range(cadence.checkpoint_interval_steps, total_steps, cadence.checkpoint_interval_steps), total_steps]
    every = cadence.checkpoint_keep_every_steps
    kept = {step for step in steps if every is not None and step % every == 0}
    return len(kept | set(steps[-cadence.checkpoint_keep_last :]))


def with_gpu_memory(plan: StagePlan) -> StagePlan:
    """The plan with the memory that its ranks take on GPUs, as `counted_on_gpus` has it."""
    assert plan.cost is not None, "a plan made from a recipe has its cost"
    layout = counted_on_gpus(plan.layout)
    rl = plan.rl.options if plan.rl is not None else None
    memory = memory_per_rank(
        plan.model, layout, plan.batch, plan.execution, precision=plan.precision, rl=rl, fp8=plan.fp8, on_gpu=True
    )
    return plan.model_copy(update={"cost": plan.cost.model_copy(update={"memory": memory})})


def gpu_time(plan: StagePlan, *, mfu: float | None, gpu: str | None) -> GpuTime | None:
    """GPU-hours of a stage at a stated model FLOPs utilisation; None where none is stated.

    MFU is model operations a second over the peak (Source: PaLM, arXiv 2204.02311 appendix B): what is
    recomputed takes time but does not count.

    Args:
        plan: With its cost.
        mfu: In (0, 1].
        gpu: A key of `PEAK_TFLOPS`, or a peak in TFLOP/s.

    Raises:
        UsageError: One of the two is missing or out of range.
    """
    if mfu is None and gpu is None:
        return None
    if mfu is None or gpu is None:
        raise UsageError("plan: --mfu and --gpu belong together; a time without either would be a guess.")
    if not 0 < mfu <= 1:
        raise UsageError(f"plan: --mfu {mfu:g} is no share of the peak; give it in (0, 1], such as 0.45.")
    assert plan.cost is not None, "a plan made from a recipe has its cost"
    peak = _peak_tflops(gpu)
    seconds = plan.cost.total_flops / (peak * 1e12 * mfu)
    return GpuTime(gpu, peak, mfu, seconds / 3600, seconds / 86_400 / plan.layout.world_size)


def _peak_tflops(gpu: str) -> float:
    try:
        peak = PEAK_TFLOPS.get(gpu.lower()) or float(gpu)
    except ValueError:
        peak = 0.0
    if not 0 < peak < float("inf"):
        raise UsageError(f"plan: --gpu {gpu!r}: use {', '.join(PEAK_TFLOPS)}, or a peak in TFLOP/s, such as 989.4.")
    return peak
