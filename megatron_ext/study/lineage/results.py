"""What was found and made of the checkpoints of a stage: evaluations with their results, exports."""

from __future__ import annotations

from pathlib import Path

from data_tools.errors import DataError
from megatron_ext.evaluate.results import RESULTS, Results, TaskResult, read_results
from megatron_ext.plan.lineage import EXPORTS_FILE
from megatron_ext.study.lineage.lines import read_lines
from megatron_ext.study.lineage.record import EvaluationFacts, ExportFacts, TaskFacts


def evaluations_of(folder: Path, weights: str | None, unknown: list[str]) -> tuple[EvaluationFacts, ...]:
    """The finished evaluations of a stage, by name.

    Args:
        folder: Of the stage.
        weights: Fingerprint of the checkpoint that the lineage is of; None where it is not known.
        unknown: Takes a sentence for results that cannot be read.
    """
    found = []
    for file in sorted(folder.glob(f"evaluations/*/{RESULTS}")):
        try:
            results = read_results(file)
        except DataError as error:
            unknown.append(f"an evaluation is not known: {error}")
            continue
        found.append(_evaluation(file.parent, results, weights))
    return tuple(found)


def exports_of(folder: Path, unknown: list[str]) -> tuple[ExportFacts, ...]:
    """The exports of a stage's checkpoints, oldest first."""
    return read_lines(folder / EXPORTS_FILE, ExportFacts, unknown)


def _evaluation(folder: Path, results: Results, weights: str | None) -> EvaluationFacts:
    return EvaluationFacts(
        folder=str(folder),
        name=results.name,
        suite=results.suite,
        created=results.created,
        step=results.checkpoint.step,
        is_of_this_checkpoint=None if weights is None else results.checkpoint.fingerprint == weights,
        tasks=tuple(_task(task) for task in results.tasks),
    )


def _task(task: TaskResult) -> TaskFacts:
    metric = task.metric()
    return TaskFacts(
        task=task.task,
        name=task.name,
        metric=metric.name,
        value=metric.value,
        low=metric.interval.low if metric.interval else None,
        high=metric.interval.high if metric.interval else None,
        n=metric.n,
        data_id=task.data_id,
        contamination=task.contamination.status,
        contamination_note=task.contamination.note,
    )
