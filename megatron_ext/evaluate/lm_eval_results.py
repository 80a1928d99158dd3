"""What the harness found, in our form of results; its own numbers and settings are kept beside them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from data_tools.errors import DataError
from megatron_ext.evaluate.kept_items import KeptItems
from megatron_ext.evaluate.lm_eval_contamination import item_id
from megatron_ext.evaluate.lm_eval_tasks import LoadedTasks
from megatron_ext.evaluate.results import Contamination, Interval, Metric, TaskResult
from megatron_ext.evaluate.tasks import TaskRequest
from megatron_ext.training.intervals import NORMAL_95, wilson_interval


def task_results(
    request: TaskRequest,
    loaded: LoadedTasks,
    found: Mapping[str, Any],
    *,
    notes: Sequence[str],
    max_length: int,
    contamination: Mapping[str, Contamination],
) -> list[TaskResult]:
    """One result for a task or a group; one for each task of a tag, or of a group that makes no numbers of them.

    Args:
        request: What was asked.
        loaded: Its tasks.
        found: What the harness's `evaluate` returns.
        notes: What a reader must know.
        max_length: Tokens of a text at most.
        contamination: What is known of each result's tasks, by its name.
    """
    return [
        TaskResult(
            task=request.task if name == request.argument else f"{request.task}/{name}",
            kind=request.kind,
            name=name_of(request, name),
            domain=request.domain,
            headline=_headline(request, metrics),
            metrics=tuple(metrics),
            items=sum(found["n-samples"][one]["effective"] for one in members),
            data=", ".join(dict.fromkeys(str(loaded.tasks[one].config.dataset_path) for one in members)),
            data_id=_data_id(found["samples"], members),
            method=f"lm-eval {version('lm-eval')} on this engine, texts of at most {max_length:,} tokens",
            seed=request.options.seed,
            contamination=contamination[name],
            notes=(*notes, *_not_finite(found["results"][name])),
            details=_details(found, name, members, loaded),
        )
        for name, members in loaded.parts(request.argument)
        for metrics in [list(_metrics(found, name))]
    ]


def keep_samples(request: TaskRequest, loaded: LoadedTasks, found: Mapping[str, Any], items: KeptItems) -> None:
    """Keeps a line for each document: its prompt, what was answered, and what each filter made of it. Of one rank."""
    for name, members in loaded.parts(request.argument):
        for member in members:
            documents: dict[int, dict[str, Any]] = {}
            for sample in found["samples"][member]:
                line = documents.setdefault(sample["doc_id"], _line(sample))
                if line.get("score") is None:
                    line["score"] = _score(request, sample)
                line["filters"][sample["filter"]] = {
                    "answers": sample["filtered_resps"],
                    **{metric: sample[metric] for metric in sample["metrics"]},
                }
            for number, line in documents.items():
                item = item_id(member, number, members)
                items.add(name_of(request, name), item, **json.loads(json.dumps(line, default=str)))


def _score(request: TaskRequest, sample: Mapping[str, Any]) -> float | None:
    """The headline metric of a document; None where it is no number of its own, as of perplexities."""
    metric, _, used = str(request.extra.get("metric", sample["metrics"][0])).partition(",")
    value = sample.get(metric) if used in ("", sample["filter"]) else None
    return float(value) if _is_number(value) else None


def name_of(request: TaskRequest, name: str) -> str:
    """A result's short name: the request's, behind which a tag's task has its own; so it is unique as requests are."""
    return request.name if name == request.argument else f"{request.name}/{name}"


def _metrics(found: Mapping[str, Any], name: str) -> Iterator[Metric]:
    """The harness's `METRIC,FILTER` with its standard error as an interval; a filter of no name is left out."""
    numbers = found["results"][name]
    better = found["higher_is_better"].get(name, {})
    for key, value in numbers.items():
        metric, comma, used = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        count = int(numbers.get("sample_len") or 0)
        yield Metric(
            name=metric if used == "none" else key,
            value=value,
            n=count,
            interval=_interval(value, numbers.get(f"{metric}_stderr,{used}"), count),
            is_higher_better=better.get(metric) is not False,
        )


def _interval(value: float, error: Any, count: int) -> Interval | None:
    """Wilson's where all items are 0 or 1, or where they are alike, which says nothing of others; else by the error."""
    if not _is_number(error):
        return None
    of_ones_and_zeros = math.sqrt(value * (1 - value) / max(count - 1, 1)) if 0 <= value <= 1 else -1.0
    if count and math.isclose(error, of_ones_and_zeros, rel_tol=1e-6, abs_tol=1e-9):
        low, high = wilson_interval(value, count)
        return Interval(low=low, high=high, method="Wilson, over items")
    if error == 0:
        return None
    half = NORMAL_95 * error
    return Interval(low=value - half, high=value + half, method="normal, of lm-eval's standard error")


def _not_finite(numbers: Mapping[str, Any]) -> list[str]:
    """A sentence for each number that is left out."""
    lost = {key: value for key, value in numbers.items() if isinstance(value, float) and not math.isfinite(value)}
    return [f"{key} is {value}, so it is left out" for key, value in lost.items() if "_stderr," not in key]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _headline(request: TaskRequest, metrics: Sequence[Metric]) -> str:
    names = [metric.name for metric in metrics]
    wanted = request.extra.get("metric", names[0] if names else "any")
    if wanted not in names:
        raise DataError(
            f"task {request.task}: metric: {wanted}: found no finite number; it has {', '.join(names) or 'none'}. "
            "Look at its documents, or take it out."
        )
    return str(wanted)


def _details(found: Mapping[str, Any], name: str, members: Sequence[str], loaded: LoadedTasks) -> dict[str, Any]:
    details = {
        "results": {one: found["results"][one] for one in dict.fromkeys([name, *members])},
        "versions": {one: found["versions"].get(one) for one in members},
        "num_fewshot": {one: found["n-shot"].get(one) for one in members},
        "documents": {one: dict(found["n-samples"][one]) for one in members},
        "definitions": {one: loaded.sources[one] for one in members},
    }
    return dict(json.loads(json.dumps(details, default=str), parse_constant=lambda name: name))  # NaN as "NaN"


def _data_id(samples: Mapping[str, Any], members: Sequence[str]) -> str:
    """Identity of the documents and of the prompts made of them."""
    lines = [
        f"{name} {sample['doc_id']} {sample['doc_hash']} {sample['prompt_hash']} {sample['target_hash']}\n"
        for name in members
        for sample in samples[name]
    ]
    return hashlib.sha256("".join(sorted(set(lines))).encode()).hexdigest()


def _line(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked and answered; `text` is the first answer where answers are texts."""
    answers, contexts = sample["resps"], [arguments[0] for arguments in sample["arguments"]]
    line = {"doc": sample["doc"], "truth": str(sample["target"]), "answers": answers, "filters": {}}
    if isinstance(answers[0][0], str):
        line["text"] = answers[0][0]
    if len(set(contexts)) == 1:  # as of all choices to one question
        asked = [argument[1] for argument in sample["arguments"] if len(argument) > 1]
        return line | {"prompt": contexts[0], "asked": asked}
    return line | {"arguments": sample["arguments"]}
