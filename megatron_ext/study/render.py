"""A study's plan as tables for a terminal: the graph, the arms, what they differ in, what sharing saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_tools.quantities import counted, format_count
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_cost import format_bytes
from megatron_ext.plan.render_table import align_numbers, frame
from megatron_ext.study.graph import ending_arms, stage_name
from megatron_ext.study.questions import missing_questions
from megatron_ext.study.study_plan import ArmDifference, Cost, StageNode, StudyPlan

_NUMBERS = ("arms", "tokens", "FLOPs", "memory", "disk", "GPU-hours", "GPUs", "stages", "kept")


def print_study_plan(plan: StudyPlan) -> None:
    """Prints a plan on stdout."""
    console = terminal()
    console.print(Text.assemble((plan.name, "bold"), "  ", (plan.path, "dim")))
    console.print(headline(plan), soft_wrap=True)
    if plan.is_provisional:
        console.print(Text.assemble(("note", "yellow"), "  sizes are declared, data is not built yet: ids will change"))
    for line in missing_questions(one.suite for one in plan.evaluations):
        console.print(Text.assemble(("note", "yellow"), f"  a run is refused until this is there: {line}"))
    console.print("", _graph(plan), *_suites(plan), "", _arms(plan), sep="\n")
    if plan.differences:
        console.print("\nArms differ in")
        _print_differences(plan, console)
    console.print("", sharing(plan), sep="\n", soft_wrap=True)
    if (hardware := plan.hardware) is not None:
        console.print(f"GPU-hours at {100 * hardware.mfu:g} % MFU of {hardware.gpu}; memory as on GPUs.")


def headline(plan: StudyPlan) -> str:
    """How large the study is, in one line."""
    totals = plan.totals
    parts = [
        counted(totals.arms, "arm"),
        counted(totals.chain_stages, "stage"),
        f"{totals.unique_stages:,} unique",
        counted(totals.evaluations, "evaluation"),
    ]
    if plan.findings:
        parts.append(counted(len(plan.findings), "finding"))
    if plan.findings_left_out:
        parts.append(f"left out, for not all their arms are here: {', '.join(plan.findings_left_out)}")
    return ", ".join(parts)


def sharing(plan: StudyPlan) -> str:
    """What the arms save by sharing stages."""
    together, alone = plan.totals.cost, plan.totals.unshared
    saved = 100 * (1 - together.flops / alone.flops) if alone.flops else 0
    hours = ""
    if together.gpu_seconds is not None and alone.gpu_seconds is not None:
        hours = f", {_hours(together.gpu_seconds)} of {_hours(alone.gpu_seconds)} GPU-hours"
    return (
        f"Sharing trains {plan.totals.unique_stages:,} of {counted(plan.totals.chain_stages, 'stage')}: "
        f"{format_count(together.tokens)} of {format_count(alone.tokens)} tokens, {_flops(together.flops)} of "
        f"{_flops(alone.flops)} FLOPs ({saved:.3g} % saved){hours}."
    )


def _graph(plan: StudyPlan) -> Table:
    """Stages as a tree, what each takes, and the arms that end there."""
    table = frame("stage", "kind", "id", "tokens", "FLOPs", *_time_columns(plan), "GPUs", "memory", "kept", "ends")
    for name in (0, -1):
        table.columns[name].no_wrap = True  # a tree whose names are folded is none
    for indent, stage in _tree(plan):
        table.add_row(
            f"{indent}{stage_name(stage)}",
            stage.stage,
            _short(stage.stage_id),
            format_count(stage.tokens),
            _flops(stage.flops),
            *([_hours(stage.gpu_seconds)] if stage.gpu_seconds is not None else []),
            f"{stage.world_size:,}",
            format_bytes(stage.peak_memory_bytes),
            f"{stage.kept_checkpoints:,} x {format_bytes(stage.checkpoint_bytes)}",
            ", ".join(ending_arms(plan, stage)),
        )
    align_numbers(table, _NUMBERS)
    return table


def _suites(plan: StudyPlan) -> list[str]:
    """Which suites judge each kind of stage."""
    found: dict[str, dict[str, None]] = {}
    for one in plan.evaluations:
        found.setdefault(plan.stage(one.stage_id).stage, {})[one.suite_name] = None
    return [f"suites: {'; '.join(f'{kind} {", ".join(names)}' for kind, names in found.items())}"] if found else []


def _time_columns(plan: StudyPlan) -> tuple[str, ...]:
    return ("GPU-hours",) if plan.hardware is not None else ()


def _tree(plan: StudyPlan) -> Iterator[tuple[str, StageNode]]:
    """Stages with the lines that lead to them, each before those that begin from it."""

    def walk(stage: StageNode, lines: str, own: str) -> Iterator[tuple[str, StageNode]]:
        yield lines + own, stage
        children = plan.children(stage.stage_id)
        below = lines + {"": "", "├─ ": "│  ", "└─ ": "   "}[own]
        for child in children:
            yield from walk(child, below, "└─ " if child is children[-1] else "├─ ")

    for stage in plan.roots():
        yield from walk(stage, "", "")


def _short(stage_id: str) -> str:
    """The first digits of an id: enough to tell the stages of a study apart."""
    return stage_id.rpartition("-")[2][:8]


def _arms(plan: StudyPlan) -> Table:
    notes = ("note",) if any(arm.note for arm in plan.arms) else ()
    table = frame("arm", "stages", "tokens", "FLOPs", *_time_columns(plan), "memory", "kept", "disk", *notes)
    for arm in plan.arms:
        ids = dict.fromkeys(one for chain in arm.chains for one in chain)
        name = f"{arm.id} (baseline)" if arm.id == plan.baseline else arm.id
        table.add_row(name, *_arm_cells([plan.stage(one) for one in ids], arm.cost), *([arm.note] if notes else []))
    table.add_row("all, shared", *_arm_cells(plan.stages, plan.totals.cost), style="bold")
    align_numbers(table, _NUMBERS)
    return table


def _arm_cells(stages: Sequence[StageNode], cost: Cost) -> list[str]:
    """What stages take together: memory is that of the fullest rank of any of them."""
    return [
        f"{len(stages):,}",
        format_count(cost.tokens),
        _flops(cost.flops),
        *([_hours(cost.gpu_seconds)] if cost.gpu_seconds is not None else []),
        format_bytes(max(stage.peak_memory_bytes for stage in stages)),
        f"{sum(stage.kept_checkpoints for stage in stages):,}",
        format_bytes(cost.disk_bytes),
    ]


def _print_differences(plan: StudyPlan, console: Console) -> None:
    """Each key with who permits it, its values, and their arms."""
    for difference in plan.differences:
        head = (f"{difference.stage} {difference.key}", "bold"), f"  {_permission(difference)}"
        console.print(Text.assemble(*head), soft_wrap=True)
        table = frame("", "")
        for group in difference.values:
            table.add_row(f"  {group.value}", ", ".join(group.arms))
        console.print(table)


def _permission(difference: ArmDifference) -> str:
    return "in varies" if difference.permitted_by == "varies" else f"confounds: {difference.why}"


def _flops(number: int) -> str:
    return f"{number:.3g}"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
