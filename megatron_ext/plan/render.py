"""A stage plan as tables for a terminal, and as text of full width for a pipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_tools.quantities import counted, format_exact
from megatron_ext.plan.cost import GpuTime
from megatron_ext.plan.hardware import GPUS, RESERVE, Gpu, fits
from megatron_ext.plan.lineage import unfinished_parent
from megatron_ext.plan.predict import Prediction
from megatron_ext.plan.render_cost import cost_rows, execution_rows, format_bytes
from megatron_ext.plan.render_data import chain_rows, data_tables, domain_rows
from megatron_ext.plan.render_rl import rl_rows
from megatron_ext.plan.render_sft import sft_rows
from megatron_ext.plan.render_speed import prediction_facts
from megatron_ext.plan.render_table import Row, cut_rows, frame
from megatron_ext.plan.stage_plan import BatchPlan, NewTokensPlan, StagePlan
from megatron_ext.plan.vllm import serve_lines

_PIPE_WIDTH = 10_000
"""Wider than any table: a table that is cut where nobody can widen the window is lost."""

_SHOWN_TOKENS = 5


def print_plan(
    plan: StagePlan, *, run_root: Path, time: GpuTime | None = None, prediction: Prediction | None = None
) -> None:
    """Prints a plan on stdout.

    Args:
        plan: A decided stage.
        run_root: Folder that holds `stages/`.
        time: GPU-hours, when they were asked for.
        prediction: Its speed, when it was asked for.
    """
    console = terminal()
    console.print(Text.assemble((plan.stage_id, "bold"), "  ", (plan.recipe, "dim")))
    tables = [part for title, table in data_tables(plan) for part in (title, table) if part]
    console.print(_facts(plan, run_root, cost_rows(plan, time, prediction)), "", *tables, sep="\n")
    gpu = prediction.gpu if prediction is not None else GPUS.get(time.gpu.lower()) if time is not None else None
    sentences = [*plan.roundings, *_remarks(plan, run_root), *_too_large(plan, gpu)]
    if sentences:
        console.print("")
    for sentence in sentences:
        label = "rounded" if "round" in sentence else "note"
        console.print(Text.assemble((label, "yellow"), f"  {sentence}"), soft_wrap=True)
    if plan.rl is not None and plan.rl.options.engine == "vllm":
        console.print("", "A server for it:", *serve_lines(plan, run_root=run_root), sep="\n", soft_wrap=True)


def _remarks(plan: StagePlan, run_root: Path) -> list[str]:
    """What a run would refuse, and a plan need not: another place or time may have what is missing."""
    remarks = [unfinished] if (unfinished := unfinished_parent(plan, run_root=run_root)) else []
    if (asked := _asked_of_te(plan)) and plan.layout.backend == "auto":
        remarks.append(
            f"{', '.join(asked)}: only backend te can, and auto takes it where a GPU and its packages are; elsewhere "
            "a run is refused (megatron-ext doctor says what is here)."
        )
    return remarks


def _asked_of_te(plan: StagePlan) -> list[str]:
    """Keys, with what they ask, of what only backend te does."""
    layout = plan.layout
    asked = [f"parallel.context_parallel_size {layout.context_parallel_size}"] * (layout.context_parallel_size > 1)
    asked += ["parallel.tp_comm_overlap"] * layout.tp_comm_overlap
    asked += ["training.cuda_graphs"] * plan.has_layer_graphs
    return asked if plan.fp8 is None else [*asked, f"fp8.recipe {plan.fp8.recipe}"]


def _too_large(plan: StagePlan, gpu: Gpu | None) -> list[str]:
    """That the plan does not fit the GPU that was named, whatever it says of its speed."""
    if gpu is None or plan.cost is None:
        return []
    planned = max(rank.total for rank in plan.cost.memory)
    if fits(planned, gpu.memory):
        return []
    how = "more than" if planned > gpu.memory else f"more than {1 - RESERVE:.0%} of"
    return [
        f"memory {format_bytes(planned)} on the fullest rank is {how} the {format_bytes(gpu.memory)} of an {gpu.name}, "
        "and temporary buffers come on top: take recomputation, more ranks or another layout (plan --suggest)."
    ]


def plan_json(plan: StagePlan, time: GpuTime | None, prediction: Prediction | None = None) -> str:
    """A plan as JSON; with `gpu_time` or `prediction` where one was asked for."""
    if time is None and prediction is None:
        return plan.model_dump_json(indent=2)
    more = {"gpu_time": time._asdict()} if time is not None else {"prediction": prediction_facts(prediction)}
    return json.dumps(plan.model_dump(mode="json") | more, indent=2)


class _Console(Console):
    """A console that leaves a closed pipe to the command, as `print` does; rich would end it with code 1."""

    def on_broken_pipe(self) -> None:
        """Raises the error that is being handled."""
        raise


def terminal() -> Console:
    """Standard output: as wide as the terminal, or as the text where there is none."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return _Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def _facts(plan: StagePlan, run_root: Path, cost: list[Row]) -> Table:
    table = frame("", "")
    table.columns[0].style = "bold"
    rows = [
        *_model_rows(plan),
        *_layout_rows(plan),
        *_read_rows(plan),
        *chain_rows(plan),
        *_schedule_rows(plan),
        *_cadence_rows(plan),
        *execution_rows(plan.execution),
        *cost,
        *domain_rows(plan),
        ("tokenizer", f"{plan.data.tokenizer}, {format_exact(plan.data.tokenizer_vocab_size)} ids"),
        ("written to", str(run_root / "stages" / plan.stage_id)),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _read_rows(plan: StagePlan) -> list[Row]:
    if plan.rl is not None:
        return rl_rows(plan.rl, plan.batch, plan.data)
    return _batch_rows(plan.batch) if plan.sft is None else sft_rows(plan.sft, plan.batch)


def _model_rows(plan: StagePlan) -> list[Row]:
    size = plan.model_size
    kinds = ", ".join(f"{kind} {format_exact(count)}" for kind, count in size.parameters.items() if count)
    tied = ", output tied to the embedding" if not size.parameters["output"] else ""
    return [
        ("model", f"{plan.model.name}, {format_exact(size.total_parameters)} parameters"),
        ("", f"{kinds}{tied}"),
        ("vocabulary", f"{format_exact(plan.model.vocab_size)}, padded to {format_exact(size.padded_vocab_size)}"),
        *_new_token_rows(plan.new_tokens),
    ]


def _new_token_rows(new: NewTokensPlan | None) -> list[Row]:
    if new is None:
        return []
    shown = ", ".join(f"{token.token!r} (id {token.id})" for token in new.tokens[:_SHOWN_TOKENS])
    more = f" and {len(new.tokens) - _SHOWN_TOKENS:,} more" if len(new.tokens) > _SHOWN_TOKENS else ""
    padded = f"; padded vocabulary of the weights {format_exact(new.known_rows)}" if new.rows > new.known_rows else ""
    how = f"rows are the mean of the {format_exact(new.known_vocab_size - len(new.unused_ids))} that the weights know"
    return [("new tokens", f"{len(new.tokens):,}{f': {shown}{more}' if shown else ''}; {how}{padded}")]


def _layout_rows(plan: StagePlan) -> list[Row]:
    layout = plan.layout
    sizes = (
        f"{counted(layout.world_size, 'process', 'processes')} = "
        f"tensor {layout.tensor_model_parallel_size} x pipeline {layout.pipeline_model_parallel_size} x "
        + (f"context {layout.context_parallel_size} x " if layout.context_parallel_size > 1 else "")
        + f"data {layout.data_parallel_size}"
    )
    extras = [
        "sequence parallel" if layout.sequence_parallel else "",
        "sent while multiplied" if layout.tp_comm_overlap else "",
        "CUDA graphs" if plan.execution.cuda_graphs else "",
        "distributed optimizer" if layout.use_distributed_optimizer else "",
        "gradients summed meanwhile" if layout.overlap_grad_reduce else "",
        "weights gathered meanwhile" if layout.overlap_param_gather else "",
        f"backend {layout.backend}",
        plan.precision,
        "" if plan.fp8 is None else f"products in fp8 ({plan.fp8.recipe}, {plan.fp8.format})",
    ]
    return [
        ("layout", ", ".join(filter(None, [sizes, *extras]))),
        ("", f"layers {layout.hybrid_layer_pattern}"),
    ]


def _batch_rows(batch: BatchPlan) -> list[Row]:
    rows = [
        (
            "tokens",
            f"{format_exact(batch.total_tokens)} = {format_exact(batch.total_samples)} samples x "
            f"{format_exact(batch.sequence_length)} tokens",
        ),
        (
            "steps",
            f"{format_exact(batch.total_steps)} = {format_exact(batch.total_samples)} samples / "
            f"{format_exact(batch.global_batch_size)} a step ({format_exact(batch.tokens_per_step)} tokens)",
        ),
        (
            "microbatches",
            f"{batch.num_microbatches} a step on each rank, of {counted(batch.micro_batch_size, 'sample')}",
        ),
    ]
    return rows + cut_rows(batch)


def _schedule_rows(plan: StagePlan) -> list[Row]:
    schedule, optimizer = plan.schedule, plan.optimizer
    warmup = _length(plan, schedule.warmup_samples)
    unit = "step" if plan.sft is None else plan.sft.options.batch_unit.removesuffix("s")
    parts = [f"{warmup} {unit if warmup == '1' else f'{unit}s'} of warmup"]
    if schedule.style == "wsd":
        stable = schedule.horizon_samples - schedule.warmup_samples - schedule.decay_samples
        parts.append(f"{_length(plan, stable)} stable")
        parts.append(f"{_length(plan, schedule.decay_samples)} of {schedule.decay_style} decay")
    else:
        parts.append(f"{_length(plan, schedule.decay_samples)} of {schedule.style}")
    end = "" if schedule.style == "constant" else f" down to {optimizer.min_lr:g}"
    return [("learning rate", f"{optimizer.lr:g}{end}, {schedule.style}: {', '.join(parts)}")]


def _length(plan: StagePlan, samples: int) -> str:
    """In steps; of an sft stage, whose last step is a part of one, in the rows or conversations of its batches."""
    if plan.sft is not None:
        return format_exact(samples)
    batch = plan.batch
    steps = samples * plan.schedule.sample_tokens / (batch.sequence_length * batch.global_batch_size)
    return f"{steps:,.2f}".rstrip("0").rstrip(".")


def _held_out(plan: StagePlan) -> str:
    if plan.rl is None:
        unit = "sample" if plan.sft is None else "row"
        return f"up to {counted(plan.cadence.validation_samples, unit)} of each source"
    prompts = sum(source.held_out for source in plan.rl.sources)
    return f"pass rate on {counted(prompts, 'held-out prompt')}, {plan.rl.options.validation_samples} of each"


def _cadence_rows(plan: StagePlan) -> list[Row]:
    cadence = plan.cadence
    kept = f"the last {cadence.checkpoint_keep_last} are kept"
    if cadence.checkpoint_keep_every_steps is not None:
        kept += f", and one every {format_exact(cadence.checkpoint_keep_every_steps)} steps"
    return [
        (
            "validation",
            f"every {counted(cadence.validation_interval_steps, 'step')}, {_held_out(plan)}",
        ),
        ("checkpoints", f"every {counted(cadence.checkpoint_interval_steps, 'step')}; {kept}"),
    ]
