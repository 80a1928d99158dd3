"""The result of a verifiable task, from its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_tools.prompts import PromptFile, PromptRow, content_id
from megatron_ext.evaluate.estimators import answer_metrics, mean_metric
from megatron_ext.evaluate.results import Contamination, TaskResult, sampling_used
from megatron_ext.evaluate.tasks import TaskRequest

Answer = dict[str, Any]


def result_of(
    request: TaskRequest,
    file: PromptFile,
    rows: Sequence[PromptRow],
    answers: Sequence[Sequence[Answer]],
    contamination: Contamination,
    learned_length: int,
) -> TaskResult:
    """Counts the answers.

    Args:
        request: What was asked.
        file: The prompts' file.
        rows: Prompts that were answered.
        answers: Lines of each prompt's answers (`verifiable_task.py`), by their number.
        contamination: Whether the prompts were trained on.
        learned_length: Tokens of the rows that the stage trained on.
    """
    options = request.options
    rights = [round(sum(answer["score"] for answer in of_item)) for of_item in answers]
    well_formed = [sum(answer["is_well_formed"] for answer in of_item) / len(of_item) for of_item in answers]
    metrics = answer_metrics(rights, options.samples, seed=options.seed)
    form = mean_metric("well_formed", well_formed, num_samples=options.samples, seed=options.seed)
    every = [answer for of_item in answers for answer in of_item]
    return TaskResult(
        task=request.task,
        kind=request.kind,
        name=request.name,
        domain=request.domain,
        headline=metrics[0].name,
        metrics=(*metrics, form),
        items=len(rows),
        data=request.argument,
        data_id=content_id(rows),
        method="the answer in the last box behind the thinking, judged by the prompt's scorer",
        sampling=sampling_used(options),
        seed=options.seed,
        contamination=contamination,
        notes=tuple(_notes(request, file, rows, every, learned_length)),
        details={
            "file_sha256": file.sha256,
            "tokens": sum(answer["tokens"] for answer in every),
            "cut_off": sum(answer["finish"] == "length" for answer in every),
            "without_answer": sum(answer["answer"] is None for answer in every),
            "scorers": dict(Counter(answer["scorer"] for answer in every)),
            "by_domain": _rates(every, "domain"),
            "by_family": _rates(every, "family"),
        },
    )


def _rates(answers: Sequence[Answer], key: str) -> dict[str, dict[str, float]]:
    """Ratio of right answers, and answers, of each domain or family."""
    names = sorted({answer[key] for answer in answers} - {""})
    of_name = {name: [answer["score"] for answer in answers if answer[key] == name] for name in names}
    return {name: {"value": sum(rights) / len(rights), "answers": len(rights)} for name, rights in of_name.items()}


def _notes(
    request: TaskRequest,
    file: PromptFile,
    rows: Sequence[PromptRow],
    answers: Sequence[Answer],
    learned: int,
) -> list[str]:
    """What a reader of the numbers must know."""
    cut = sum(answer["finish"] == "length" for answer in answers)
    failed = Counter(answer["outcome"] for answer in answers)
    del failed["scored"]
    unusable = sum(file.unusable.values())
    longest = max(len(row.ids) for row in rows) + request.options.max_new_tokens
    notes = {
        f"{cut:,} of {len(answers):,} answers were cut at max_new_tokens {request.options.max_new_tokens:,}": cut,
        f"scoring of {failed.total():,} answers ended early, and they count as wrong: {dict(failed)}": failed,
        f"{unusable:,} prompts without an answer that can be judged were left out": unusable,
        f"prompts name domains that are none of ours, and stand under another: {dict(file.other_domains)}": (
            file.other_domains
        ),
        f"the first {len(rows):,} of {len(file.rows):,} prompts": len(rows) < len(file.rows),
        f"prompt and answer may have {longest:,} tokens, more than the {learned:,} of a trained row": longest > learned,
    }
    return [note for note, applies in notes.items() if applies]
