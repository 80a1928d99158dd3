"""What can be known of a harness's task before a model is loaded: its metrics, and how its answers are sampled.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_tools.errors import UsageError
from megatron_ext.evaluate.lm_eval_tasks import LoadedTasks
from megatron_ext.evaluate.tasks import TaskRequest

MAX_GEN_TOKS = 256
"""New tokens of an answer where neither task nor caller says; the harness's own default."""

_SAMPLING_KEYS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


def require_possible(request: TaskRequest, loaded: LoadedTasks, max_length: int) -> None:
    """Refuses a metric that a task does not have, and answers that the engine cannot sample.

    Args:
        request: What was asked.
        loaded: Its tasks.
        max_length: Tokens of a text at most.

    Raises:
        UsageError: Names task, key, value and rule.
    """
    wanted = request.extra.get("metric")
    for name, members in loaded.parts(request.argument):
        there = metric_names(loaded, name, members)
        if wanted is not None and wanted not in there:
            raise UsageError(f"task {request.task}: metric: {wanted}: {name} has {', '.join(there) or 'none'}.")
    for name, task in loaded.tasks.items():
        nothing = sorted(metric for metric, aggregate in task.aggregation().items() if aggregate is None)
        if nothing:
            raise UsageError(
                f"task {request.task}: {name}: metric_list: {', '.join(nothing)}: lm-eval knows no aggregation of the "
                "name given; leave `aggregation` out for its own, or name one that it has, such as mean."
            )
        if task.OUTPUT_TYPE != "generate_until":
            continue
        own = task.get_config("generation_kwargs") or {}
        try:
            asked = sampling_asked(own | dict(request.extra.get("generation_kwargs") or {}))
            require_room(asked["max_gen_toks"], max_length)
        except UsageError as error:
            raise UsageError(f"task {request.task}: {name}: {error}") from None


def metric_names(loaded: LoadedTasks, name: str, members: list[str]) -> list[str]:
    """Names of the numbers of a task or of a group, as results have them: `METRIC`, or `METRIC,FILTER`."""
    if name in loaded.groups:
        found = [
            (one.metric, used)
            for one in loaded.groups[name].aggregate_metric_list
            for used in one.filter_list or _filters(loaded, [m for m in members if one.metric in _metrics(loaded, m)])
        ]
    else:
        found = [(metric, used) for used in _filters(loaded, members) for metric in _metrics(loaded, name)]
    return list(dict.fromkeys(metric if used == "none" else f"{metric},{used}" for metric, used in found))


def _metrics(loaded: LoadedTasks, name: str) -> list[str]:
    return list(loaded.tasks[name].aggregation())


def _filters(loaded: LoadedTasks, members: list[str]) -> list[str]:
    return list(dict.fromkeys(one.name for member in members for one in loaded.tasks[member]._filters))


def sampling_asked(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A task's `generation_kwargs` in the harness's one form.

    Raises:
        UsageError: The engine does not know a key, or samples without a temperature.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(kwargs), MAX_GEN_TOKS))
    unknown = sorted(key for key in asked if key not in _SAMPLING_KEYS)
    if unknown:
        raise UsageError(
            f"generation_kwargs: {', '.join(unknown)}: this engine knows {', '.join(sorted(_SAMPLING_KEYS))}; take "
            "the others out of the task."
        )
    if asked["do_sample"] and float(asked.get("temperature", 0.0)) == 0:
        raise UsageError(
            "generation_kwargs: do_sample: true: needs a temperature above 0; set one, or do_sample: false."
        )
    return asked


def require_room(max_gen_toks: int, max_length: int) -> None:
    """Refuses answers that may be as long as the model's whole text.

    Raises:
        UsageError: There is no room for a question.
    """
    if max_gen_toks >= max_length:
        raise UsageError(
            f"max_gen_toks: {max_gen_toks:,}: leaves no room for a question among the model's "
            f"{max_length:,} tokens; lower it in the task, or raise --set max_length=N if the model may read "
            "longer texts than it was trained on."
        )
