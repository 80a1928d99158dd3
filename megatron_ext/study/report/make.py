"""A study's plan and what lies on disk become a report. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from megatron_ext.evaluate.results import Results
from megatron_ext.study.launcher import Launcher
from megatron_ext.study.report.content import GraphNode, Missing, Report, TaskContamination
from megatron_ext.study.report.costs import costs_of, unread_steps
from megatron_ext.study.report.curves import curves_of, read_metrics
from megatron_ext.study.report.evaluated import read_evaluations, rows_of
from megatron_ext.study.report.findings import findings_of
from megatron_ext.study.report.headline import headline_of
from megatron_ext.study.report.labels import StageGroup, groups_of
from megatron_ext.study.report.provenance import all_runs, provenance_of
from megatron_ext.study.report.readings import readings_of
from megatron_ext.study.report.states import states_of
from megatron_ext.study.report.table import EvaluatedSuite, evaluated_suites, is_elsewhere, rows_with_cells
from megatron_ext.study.state import States
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
    states = states_of(plan, launchers)
    rows, evaluations = rows_of(plan), read_evaluations(plan)
    groups = groups_of(plan, rows)
    suites = evaluated_suites(plan, rows, evaluations)
    metrics = {stage.stage_id: read_metrics(root / "stages" / stage.stage_id, stage.tokens) for stage in plan.stages}
    unknown = [*_suites_elsewhere(plan), *unread_steps(plan, metrics)]
    results, runs = {node: one.results for node, one in evaluations.items()}, all_runs(plan, unknown)
    infos = [info for suite in suites for info in (*(one.info for one in suite.measured), *suite.unmeasured)]
    return Report(
        study=plan.name,
        note=plan.note,
        baseline=plan.baseline,
        is_provisional=plan.is_provisional,
        headlines=tuple(headline_of(suite) for suite in reversed(suites)),
        findings=tuple(findings_of(plan, suites)),
        findings_left_out=plan.findings_left_out,
        findings_notes=plan.findings_notes,
        metrics=tuple(infos),
        rows=tuple(rows_with_cells(plan, rows, suites, states)),
        curves=tuple(curves_of(groups, metrics)),
        readings=tuple(readings_of(plan, states)),
        contamination=tuple(_contamination(suites)),
        costs=costs_of(plan, groups, metrics, states, results, runs),
        graph=tuple(_graph(plan, groups, states, results)),
        missing=tuple(_missing(plan, groups, states)),
        differences=tuple(_differences(plan)),
        provenance=provenance_of(plan, results, runs, unknown=unknown, command=command),
    )


def _suites_elsewhere(plan: StudyPlan) -> list[str]:
    return [
        f"{suite}: not on this machine: of what has not been evaluated the columns are not known"
        for suite in dict.fromkeys(node.suite for node in plan.evaluations)
        if is_elsewhere(suite)
    ]


def _contamination(suites: Sequence[EvaluatedSuite]) -> list[TaskContamination]:
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
                    notes=tuple(
                        dict.fromkeys(part for t in tasks.values() for part in t.contamination.note.split("; ") if part)
                    ),
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
                finished=sum(states[stage.stage_id].state == "finished" for stage in group.stages),
                arms=group.arms,
                evaluations=len(evaluations),
                evaluated=sum(node in results for node in evaluations),
            )
        )
    return found


def _missing(plan: StudyPlan, groups: Sequence[StageGroup], states: States) -> list[Missing]:
    """Stages and evaluations that have not finished."""
    found = []
    for group, stage in ((one, stage) for one in groups for stage in one.stages):
        seed = f", seed {stage.replicate + 1} of {len(group.stages)}" if len(group.stages) > 1 else ""
        names = {stage.stage_id: f"{stage.stage} {group.label}{seed}"}
        for node in plan.evaluations_of(stage.stage_id):
            names[node.node_id] = f"evaluation {node.suite_name} of {names[stage.stage_id]}"
        is_trained = states[stage.stage_id].state == "finished"
        for name, what in names.items():
            one = states[name]
            if one.state == "finished":
                continue
            waits = "nobody has begun it" if is_trained or name == stage.stage_id else "its stage is not finished"
            reason = one.reason or {"waiting": waits, "running": "it is running"}.get(one.state, "")
            log = str(one.log) if one.log is not None else None
            found.append(Missing(what=what, arms=stage.arms, state=one.state, reason=reason, log=log))
    return found


def _differences(plan: StudyPlan) -> list[str]:
    """What the report's arms differ in beside what the study varies, with its reason."""
    arms = {arm.id for arm in plan.arms}
    said = []
    for one in (one for one in plan.differences if one.permitted_by == "confounds"):
        values = {value.value: [arm for arm in value.arms if arm in arms] for value in one.values}
        shown = [f"{value}: {', '.join(of_value)}" for value, of_value in values.items() if of_value]
        if len(shown) > 1:
            said.append(f"{one.key} ({one.stage}): {'; '.join(shown)}" + (f". {one.why}" if one.why else ""))
    return said
