"""A study's plan and what lies on disk become a report. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from megatron_ext.evaluate.results import Results
from megatron_ext.study.launcher import Launcher
from megatron_ext.study.report.content import (
    GraphNode,
    Missing,
    Report,
    TaskContamination,
)
from megatron_ext.study.report.costs import States, all_results, costs_of
from megatron_ext.study.report.curves import curves_of, read_metrics
from megatron_ext.study.report.findings import findings_of
from megatron_ext.study.report.judged import rows_of
from megatron_ext.study.report.labels import StageGroup, groups_of
from megatron_ext.study.report.provenance import all_runs, provenance_of
from megatron_ext.study.report.readings import readings_of
from megatron_ext.study.report.table import JudgedSuite, headline_of, judged_suites, rows_with_cells
from megatron_ext.study.state import node_states
from megatron_ext.study.study_plan import StudyPlan


def make_report(plan: StudyPlan, launchers: Iterable[Launcher] = (), *, command: str) -> Report:
    """The report of a study, whatever of it has run.

    Args:
        plan: The study.
        launchers: Find again what still runs.
        command: That asked for the report, for its foot.

    Raises:
        DataError: Something on disk is damaged.
    """
    root = Path(plan.run_root)
    states = {name: (state.state, state.reason) for name, state in node_states(plan, root, launchers).items()}
    rows = rows_of(plan)
    groups = groups_of(plan, rows)
    suites = judged_suites(plan, rows)
    metrics = {stage.stage_id: read_metrics(root / "stages" / stage.stage_id, stage.tokens) for stage in plan.stages}
    unknown = [
        f"{root / 'stages' / name / 'metrics.jsonl'}: {one.cut} of {one.lines + one.cut} lines cannot be read: cut "
        "by a kill"
        for name, one in metrics.items()
        if one.cut
    ]
    results, runs = all_results(plan), all_runs(plan, unknown)
    infos = [info for suite in suites for info in (*(one.info for one in suite.measured), *suite.unmeasured)]
    return Report(
        study=plan.name,
        note=plan.note,
        baseline=plan.baseline,
        is_provisional=plan.is_provisional,
        headlines=tuple(headline_of(suite) for suite in reversed(suites)),
        findings=tuple(findings_of(plan, suites)),
        findings_left_out=plan.findings_left_out,
        metrics=tuple(infos),
        rows=tuple(rows_with_cells(plan, rows, suites)),
        curves=tuple(curves_of(groups, metrics)),
        readings=tuple(readings_of(plan, states)),
        contamination=tuple(_contamination(suites)),
        costs=costs_of(plan, groups, metrics, states, results, runs),
        graph=tuple(_graph(plan, groups, states, results)),
        missing=tuple(_missing(plan, groups, states, results)),
        differences=tuple(_differences(plan)),
        provenance=provenance_of(plan, results, runs, unknown=unknown, command=command),
    )


def _contamination(suites: Sequence[JudgedSuite]) -> list[TaskContamination]:
    found = []
    for suite in suites:
        names = dict.fromkeys(task.name for row in suite.results for one in row for task in one.results.tasks)
        for name in names:
            tasks = {
                row.label: task
                for row, got in zip(suite.rows, suite.results, strict=True)
                for task in [one.task(name) for one in got]
                if task is not None
            }
            found.append(
                TaskContamination(
                    stage=suite.stage,
                    suite=suite.suite,
                    task=name,
                    statuses={
                        row.label: tasks[row.label].contamination.status if row.label in tasks else "not run"
                        for row in suite.rows
                    },
                    items={
                        label: task.contamination.items for label, task in tasks.items() if task.contamination.items
                    },
                    notes=tuple(dict.fromkeys(t.contamination.note for t in tasks.values() if t.contamination.note)),
                )
            )
    return found


def _graph(
    plan: StudyPlan, groups: Sequence[StageGroup], states: States, results: Mapping[str, Results]
) -> list[GraphNode]:
    first = {stage.stage_id: group.node for group in groups for stage in group.stages}
    found = []
    for group in groups:
        evaluations = [node.node_id for stage in group.stages for node in plan.evaluations_of(stage.stage_id)]
        found.append(
            GraphNode(
                node=group.node,
                parent=first[group.parent] if group.parent is not None else None,
                stage=group.stages[0].stage,
                label=group.label,
                recipe=group.stages[0].recipe,
                tokens=group.stages[0].tokens,
                seeds=len(group.stages),
                finished=sum(states[stage.stage_id][0] == "finished" for stage in group.stages),
                arms=group.arms,
                evaluations=len(evaluations),
                evaluated=sum(node in results for node in evaluations),
            )
        )
    return found


def _missing(
    plan: StudyPlan, groups: Sequence[StageGroup], states: States, results: Mapping[str, Results]
) -> list[Missing]:
    """Stages and evaluations that have not finished."""
    found = []
    for group in groups:
        for stage in group.stages:
            state, reason = states[stage.stage_id]
            seed = f", seed {stage.replicate + 1} of {len(group.stages)}" if len(group.stages) > 1 else ""
            if state != "finished":
                what = f"{stage.stage} {group.label}{seed}"
                found.append(Missing(what=what, arms=stage.arms, state=state, reason=reason or _why(state)))
            for node in plan.evaluations_of(stage.stage_id):
                if node.node_id not in results:
                    what = f"evaluation {node.suite_name} of {stage.stage} {group.label}{seed}"
                    why = "its stage is not finished" if state != "finished" else "its stage is finished"
                    found.append(Missing(what=what, arms=stage.arms, state="not run", reason=why))
    return found


def _why(state: str) -> str:
    return {"waiting": "nobody has begun it", "running": "it is running"}.get(state, "")


def _differences(plan: StudyPlan) -> list[str]:
    """What arms differ in beside what the study varies, with its reason."""
    return [
        f"{one.key} ({one.stage}): "
        + "; ".join(f"{value.value}: {', '.join(value.arms)}" for value in one.values)
        + (f". {one.why}" if one.why else "")
        for one in plan.differences
        if one.permitted_by == "confounds"
    ]
