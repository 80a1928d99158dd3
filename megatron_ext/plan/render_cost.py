"""The cost of a stage as rows of its plan's table."""

from __future__ import annotations

from data_tools.quantities import format_exact
from megatron_ext.plan.cost import GpuTime
from megatron_ext.plan.predict import Prediction
from megatron_ext.plan.render_speed import format_hours, speed_rows
from megatron_ext.plan.render_table import Row
from megatron_ext.plan.stage_plan import CostPlan, ExecutionPlan, RankMemory, StagePlan

HELD_AGAINST = "measured steps took at most 2 % more in all, on one GPU"
"""Of measured_points.jsonl, as a test has it."""

_BYTES = ("B", "KB", "MB", "GB", "TB", "PB")


def format_bytes(number: int) -> str:
    """Bytes to three digits, in powers of 1000.

    >>> format_bytes(999), format_bytes(113_400_000_000), format_bytes(999_900)
    ('999 B', '113 GB', '1 MB')
    """
    value, unit = float(number), 0
    while float(f"{value:.3g}") >= 1000 and unit < len(_BYTES) - 1:
        value, unit = value / 1000, unit + 1
    return f"{float(f'{value:.3g}'):g} {_BYTES[unit]}"


def cost_rows(plan: StagePlan, time: GpuTime | None, prediction: Prediction | None = None) -> list[Row]:
    """Operations, memory of the fullest rank, checkpoints, and speed and GPU-hours when they were asked for."""
    if plan.cost is None:
        return []
    rows = [
        *_flops_rows(plan, plan.cost),
        *_memory_rows(plan, plan.cost, is_on_gpus=time is not None or prediction is not None),
        *_checkpoint_rows(plan, plan.cost),
    ]
    if prediction is not None:
        rows += speed_rows(prediction, total_tokens=plan.batch.total_tokens)
    if time is not None:
        text = (
            f"{format_hours(time.gpu_hours)} at {100 * time.mfu:g} % MFU of {time.peak_tflops:g} TFLOP/s ({time.gpu}): "
            f"{time.days:,.3g} days on {format_exact(plan.layout.world_size)}"
        )
        rows.append(("GPU-hours", text))
    return rows


def execution_rows(execution: ExecutionPlan) -> list[Row]:
    """What is computed or saved in another way than by default."""
    parts = []
    if execution.recompute == "full":
        parts.append(f"recompute every layer, kept every {execution.recompute_num_layers}")
    if execution.recompute == "selective":
        parts.append(f"recompute {', '.join(execution.recompute_modules)}")
    parts += ["deterministic kernels"] if execution.deterministic else []
    parts += [f"skip up to {execution.max_skipped_steps} non-finite updates"] if execution.max_skipped_steps else []
    if execution.profile_steps is not None:
        parts.append("trace steps {}-{}".format(*execution.profile_steps))
    parts += ["periodic saves dp_reshardable"] if execution.optimizer_format == "dp_reshardable" else []
    parts += ["periodic saves in the background"] if execution.async_save else []
    return [("execution", ", ".join(parts))] if parts else []


def _flops_rows(plan: StagePlan, cost: CostPlan) -> list[Row]:
    per_token = sum(cost.token_flops.values())
    kinds = ", ".join(f"{kind} {100 * flops / per_token:.3g} %" for kind, flops in cost.token_flops.items() if flops)
    again = cost.recomputed_token_flops
    rows = [
        (
            "FLOPs",
            f"{per_token:.4g} a token = {per_token / plan.model_size.total_parameters:.3g} x parameters; "
            f"{cost.step_flops:.4g} a step, {cost.total_flops:.4g} in all"
            + (f"; {100 * again / per_token:.3g} % more recomputed" if again else ""),
        ),
        ("", kinds),
    ]
    if len(cost.pipeline_token_flops) > 1:
        shares = ", ".join(f"{100 * flops / per_token:.3g} %" for flops in cost.pipeline_token_flops)
        rows.append(("", f"pipeline stages {shares}"))
    return rows


def _memory_rows(plan: StagePlan, cost: CostPlan, *, is_on_gpus: bool) -> list[Row]:
    """The fullest rank's; `is_on_gpus` says that it was counted as on GPUs, backend `auto` as te."""
    fullest = max(range(len(cost.memory)), key=lambda stage: cost.memory[stage].total)
    memory = cost.memory[fullest]
    where = f" (pipeline stage {fullest})" if len(cost.memory) > 1 else ""
    rows = [
        ("memory", f"{format_bytes(memory.total)} on the fullest rank{where}, temporary buffers on top"),
        ("", _memory_parts(memory)),
    ]
    backend = plan.layout.backend
    if backend == "auto" and not is_on_gpus:
        rows.append(("", "activations as backend local keeps them on a CPU; with --gpu auto is counted as te"))
    elif not memory.is_calibrated:
        counted = "te (as auto is counted on GPUs)" if backend == "auto" else backend
        rows.append(("", f"activations of backend {counted} are an estimate: {HELD_AGAINST}"))
    return rows


def _memory_parts(memory: RankMemory) -> str:
    kinds = ("parameters", "gradients", "optimizer", "activations", "logits", "reference", "caches", "fp8_weights")
    sizes = {kind.replace("_", " "): getattr(memory, kind) for kind in kinds}
    return ", ".join(f"{kind} {format_bytes(size)}" for kind, size in sizes.items() if size)


def _checkpoint_rows(plan: StagePlan, cost: CostPlan) -> list[Row]:
    kept, plural = cost.kept_checkpoints, "" if cost.kept_checkpoints == 1 else "s"
    save = f"the busiest rank writes {format_bytes(cost.busiest_rank_bytes)}"
    if cost.gathered_bytes:
        save += f", every rank gathers {format_bytes(cost.gathered_bytes)} in host memory first"
    return [
        (
            "disk",
            f"{format_bytes(kept * cost.checkpoint_bytes)} = {format_exact(kept)} checkpoint{plural} x "
            f"{format_bytes(cost.checkpoint_bytes)} (weights {format_bytes(cost.weights_bytes)}), "
            "one more while it is written",
        ),
        ("a save", save),
    ]
