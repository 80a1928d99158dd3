"""`held-out` and `held-out:PREFIX`: loss in nats a token and bits a byte, each token predicted once.

`held-out` reads the stage's own held-out sets by its own rule, as its validation does: of pretraining rows laid end to
end over documents, from the first to the last token; of fine-tuning packed rows, of which what the assistant says
counts. On as many rows as validation reads (`rows`) it gives validation's number.

`held-out:PREFIX` reads any tokenised dataset document by document (`document_windows.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.dataset import StoredDataset, read_dataset
from data_tools.errors import DataError, UsageError
from megatron_ext.evaluate.contamination import trained_sources
from megatron_ext.evaluate.results import Contamination
from megatron_ext.evaluate.tasks import TaskRequest
from megatron_ext.plan.stage_plan import SourcePlan, StagePlan
from megatron_ext.training.file_list import read_plan

if TYPE_CHECKING:
    from megatron_ext.evaluate.evaluation import Evaluation
    from megatron_ext.evaluate.results import TaskResult

_ROWS = {
    "pretrain": "rows of {length:,} tokens laid end to end over documents, as in validation, from the first token to "
    "the last; the first token of all is not predicted; documents in a row: isolation {isolation}",
    "sft": "packed rows of {length:,} tokens, as in validation; what the assistant says counts, each token alike",
}


def check(requests: Sequence[TaskRequest], checkpoint: Path) -> None:
    """Refuses held-out sets that are not there, were trained on, or were made by another tokenizer."""
    plan = read_plan(checkpoint)
    for request in requests:
        if request.argument:
            _require_fit(request, read_dataset(request.argument), plan, checkpoint)
        elif plan.stage == "rl":
            raise UsageError(
                f"--tasks {request.task}: what an rl stage holds out are prompts: --tasks verifiable:"
                f"{checkpoint.parents[1]}; or name a tokenised dataset, held-out:PREFIX."
            )
        elif not plan.data.sources:
            raise UsageError(
                f"--tasks {request.task}: an imported model has no held-out sets of its own; name a tokenised dataset: "
                "held-out:PREFIX."
            )
        else:
            for source in plan.data.sources:
                _require_unchanged(source)


def _require_fit(request: TaskRequest, dataset: StoredDataset, plan: StagePlan, checkpoint: Path) -> None:
    if dataset.tokenizer.fingerprint != plan.data.tokenizer_fingerprint:
        raise DataError(
            f"{request.argument}: made by tokenizer {dataset.tokenizer.fingerprint[:12]}…, the checkpoint reads "
            f"{plan.data.tokenizer_fingerprint[:12]}…; tokenize it again with {checkpoint / 'tokenizer'}."
        )
    if dataset.tokens == 0:
        raise DataError(f"{request.argument}: holds no token.")
    trained = {source.data_id: source.name for source in trained_sources(checkpoint)}
    if (name := trained.get(dataset.data_id)) is not None and request.options.contaminated == "refuse":
        raise DataError(
            f"{request.task}: the checkpoint was trained on these very tokens, source {name!r}: what it would measure "
            "is memory. Take held-out documents; or have the result marked: --contaminated mark, or in the suite's "
            "file options: {contaminated: mark}."
        )


def _require_unchanged(source: SourcePlan) -> None:
    dataset = read_dataset(source.validation_prefix)
    if dataset.data_id != source.validation_data_id:
        raise DataError(
            f"{source.validation_prefix}: holds other tokens than the stage was validated on; restore it, or evaluate "
            f"it as a set of its own: held-out:{source.validation_prefix}."
        )


def run(requests: Sequence[TaskRequest], evaluation: Evaluation) -> list[TaskResult]:
    """Computes the losses. All ranks must call this."""
    from megatron_ext.evaluate.document_windows import evaluate_documents

    found: list[TaskResult] = []
    for request in requests:
        if request.argument:
            found.append(evaluate_documents(request, evaluation, _contamination_of_dataset(request, evaluation)))
        else:
            sources = evaluation.opened.plan.data.sources
            found += [_own_set(request, evaluation, source, is_only=len(sources) == 1) for source in sources]
    return found


def _contamination_of_dataset(request: TaskRequest, evaluation: Evaluation) -> Contamination:
    trained = {source.data_id for source in trained_sources(evaluation.opened.path)}
    if read_dataset(request.argument).data_id in trained:
        return Contamination(status="overlaps", note="the checkpoint was trained on these very tokens")
    return Contamination(status="unknown", note="no source that was trained on is this dataset; texts are not compared")


def _own_set(request: TaskRequest, evaluation: Evaluation, source: SourcePlan, *, is_only: bool) -> TaskResult:
    """The loss on a source's held-out set, by the code of the training loop's validation."""
    from data_tools.progress import shown
    from megatron_ext.evaluate.results import Metric, TaskResult
    from megatron_ext.evaluate.text_bytes import bits_per_byte, bytes_of_labels, require_finite
    from megatron_ext.training.parts import objective_of
    from megatron_ext.training.validate import held_out_report

    opened, options = evaluation.opened, request.options
    plan = _reading(opened.plan, rows=options.rows)
    objective, groups = objective_of(plan, opened.groups), opened.groups
    most = -(-read_dataset(source.validation_prefix).tokens // plan.batch.sequence_length)
    rows = min(plan.cadence.validation_samples, most)
    with shown(f"{request.name}/{source.source}: rows", rows // groups.dp.size(), unit="rows") as progress:
        report = held_out_report(
            plan, opened.model, objective, groups, source=source, keep_tail=True, progress=progress
        )
    row = report[plan.data.sources.index(source)]
    nats, tokens = require_finite(float(row[0]), f"{request.task}, source {source.source}"), round(float(row[1]))
    loss = Metric(name="loss", value=nats / tokens, n=tokens, is_higher_better=False)
    metrics, details, method = [loss], {"nats": nats, "tokens": tokens}, _ROWS[plan.stage]
    if plan.stage == "pretrain":
        num_bytes = bytes_of_labels(source, opened.tokenizer_folder, num_labels=tokens)
        metrics.append(bits_per_byte(nats, num_bytes, tokens))
        details["bytes"] = num_bytes
        method += "; bytes by decoding documents, an end of document counts none"
    return TaskResult(
        task=request.task if is_only else f"{request.task}/{source.source}",
        kind=request.kind,
        name=request.name if is_only else f"{request.name}/{source.source}",
        domain=request.domain or source.domain,
        headline="loss",
        metrics=tuple(metrics),
        items=tokens,
        data=source.validation_prefix,
        data_id=source.validation_data_id,
        method=method.format(length=plan.batch.sequence_length, isolation=plan.data.document_isolation)
        + "; no interval: tokens of a row are not drawn one by one",
        seed=options.seed,
        contamination=Contamination(status="not-applicable", note="a plan refuses held-out sets that its chain reads"),
        notes=(f"limit {options.limit:,} counts documents and questions; rows=N limits these rows",)
        if options.limit is not None
        else (),
        details=details,
    )


def _reading(plan: StagePlan, *, rows: int | None) -> StagePlan:
    """The plan, validating on `rows` rows of each source; None: on all."""
    cadence = plan.cadence.model_copy(update={"validation_samples": rows or sys.maxsize})
    return plan.model_copy(update={"cadence": cadence})
