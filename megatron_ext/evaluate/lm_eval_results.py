"""What the harness found, in our form of results; its own numbers and settings are kept beside them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from data_tools.errors import UsageError
from megatron_ext.evaluate.kept_items import KeptItems
from megatron_ext.evaluate.lm_eval_tasks import LoadedTasks
from megatron_ext.evaluate.results import Contamination, Interval, Metric, TaskResult
from megatron_ext.evaluate.tasks import TaskRequest

_NORMAL_95 = 1.959964
"""Half the width of 95 % of a normal distribution, in standard deviations."""


def task_results(
    request: TaskRequest, loaded: LoadedTasks, found: Mapping[str, Any], *, notes: Sequence[str], max_length: int
) -> list[TaskResult]:
    """One result for a task or a group; one for each task of a tag.

    Args:
        request: What was asked.
        loaded: Its tasks.
        found: What the harness's `evaluate` returns.
        notes: What a reader must know.
        max_length: Tokens of a text at most.
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
            contamination=Contamination(status="unknown", note="not compared with what was trained on"),
            notes=tuple(notes),
            details=_details(found, name, members, loaded),
        )
        for name, members in _parts(request, loaded)
        for metrics in [list(_metrics(found, name))]
    ]


def keep_samples(request: TaskRequest, loaded: LoadedTasks, found: Mapping[str, Any], items: KeptItems) -> None:
    """Keeps a line for each document: its prompt, what was answered, and what each filter made of it. Of one rank."""
    for name, members in _parts(request, loaded):
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
                item = str(number) if len(members) == 1 else f"{member}/{number}"
                items.add(name_of(request, name), item, **json.loads(json.dumps(line, default=str)))


def _score(request: TaskRequest, sample: Mapping[str, Any]) -> float | None:
    """The headline metric of a document; None where it is no number of its own, as of perplexities."""
    metric, _, used = str(request.extra.get("metric", sample["metrics"][0])).partition(",")
    value = sample.get(metric) if used in ("", sample["filter"]) else None
    return float(value) if _is_number(value) else None


def name_of(request: TaskRequest, name: str) -> str:
    """A result's short name: the request's, or of a tag's task its own."""
    return request.name if name == request.argument else name


def _parts(request: TaskRequest, loaded: LoadedTasks) -> list[tuple[str, list[str]]]:
    """What gets a result of its own, and the tasks in it: the group, or each task."""
    if request.argument in loaded.groups:
        return [(request.argument, list(loaded.tasks))]
    return [(name, [name]) for name in loaded.tasks]


def _metrics(found: Mapping[str, Any], name: str) -> Iterator[Metric]:
    """The harness's `METRIC,FILTER` with its standard error as an interval; a filter of no name is left out."""
    numbers = found["results"][name]
    better = found["higher_is_better"].get(name, {})
    for key, value in numbers.items():
        metric, comma, used = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        error = numbers.get(f"{metric}_stderr,{used}")
        interval = None
        if _is_number(error):
            half = _NORMAL_95 * error
            interval = Interval(low=value - half, high=value + half, method="normal, of lm-eval's standard error")
        yield Metric(
            name=metric if used == "none" else key,
            value=value,
            n=int(numbers.get("sample_len") or 0),
            interval=interval,
            is_higher_better=better.get(metric) is not False,
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _headline(request: TaskRequest, metrics: Sequence[Metric]) -> str:
    names = [metric.name for metric in metrics]
    wanted = request.extra.get("metric", names[0])
    if wanted not in names:
        raise UsageError(f"task {request.task}: metric: {wanted}: it has {', '.join(names)}.")
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
