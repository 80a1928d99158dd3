"""What is asked: tasks by name, and who runs them. Imports no torch.

| task              | what it is                                                                     |
|-------------------|--------------------------------------------------------------------------------|
| `held-out`        | loss and bits per byte on the held-out sets that the stage was validated on    |
| `held-out:PREFIX` | the same on any tokenised dataset, document by document                        |
| `verifiable:FILE` | prompts with answers that a scorer can judge, in the schema of the rl samples  |
| `lm-eval:TASK`    | a task or group of the Language Model Evaluation Harness                       |
| `evalplus:DATASET`, `nemo-skills:BENCHMARK` | judged by those programs on the export; the commands are said |
| `external:NAME`   | judged by anything else, its number brought in a file                          |

A kind is a module of this package with two functions; who adds one adds it to `KINDS`:

    check(requests, checkpoint)   refuses what could not run, before torch is imported
    run(requests, evaluation)     a `TaskResult` for each request, or several; all ranks call it

`run` gets one request at a time, and its results are kept before the next one begins; tasks of other programs come all
at once, so that one script serves them.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

from data_tools.atomic_files import beside
from data_tools.errors import UsageError
from megatron_ext.evaluate.options import Options, options_of

if TYPE_CHECKING:
    from megatron_ext.evaluate.evaluation import Evaluation
    from megatron_ext.evaluate.results import TaskResult

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "held-out": "held_out_task",
        "verifiable": "verifiable_task",
        "lm-eval": "lm_eval_task",
        "evalplus": "external_task",
        "nemo-skills": "external_task",
        "external": "external_task",
    }
)
"""Modules by kind."""

_NEEDS_ARGUMENT = {
    "verifiable": "FILE",
    "lm-eval": "TASK",
    "evalplus": "DATASET",
    "nemo-skills": "BENCHMARK",
    "external": "NAME",
}


@dataclass(frozen=True)
class TaskRequest:
    """One task, as asked.

    Attributes:
        kind: Of `KINDS`.
        argument: What stands behind the colon; "" where nothing does.
        name: Short, for tables.
        domain: math, code, science, general, instruction; "" where none was said.
        options: Of this task: those of the command line, and what a suite sets for it.
        extra: What a suite says that only this kind reads, such as `num_fewshot`.
    """

    kind: str
    argument: str
    name: str
    options: Options
    domain: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """As it is written on the command line."""
        return f"{self.kind}:{self.argument}" if self.argument else self.kind


class Kind(Protocol):
    """What a kind's module has."""

    def check(self, requests: Sequence[TaskRequest], checkpoint: Path) -> None:
        """Refuses what could not run; before torch is imported."""

    def run(self, requests: Sequence[TaskRequest], evaluation: Evaluation) -> list[TaskResult]:
        """Runs all requests of the kind. All ranks must call this."""


def kind_named(kind: str) -> Kind:
    """The module that runs a kind of tasks."""
    return cast(Kind, importlib.import_module(f"megatron_ext.evaluate.{KINDS[kind]}"))


def read_request(
    text: str, options: Options, *, name: str | None = None, domain: str = "", extra: Mapping[str, Any] | None = None
) -> TaskRequest:
    """A task from its text.

    Args:
        text: `KIND` or `KIND:ARGUMENT`.
        options: Of the command line.
        name: Short, for tables; without one it is made of the argument.
        domain: For aggregates.
        extra: Keys of a suite's entry; those that are options replace the command line's.

    Raises:
        UsageError: There is no such kind, or its argument is missing.

    >>> read_request("verifiable:data/digit.eval.jsonl", Options()).name
    'digit.eval'
    """
    kind, _, argument = text.partition(":")
    if kind not in KINDS:
        raise UsageError(f"--tasks {text}: {kind!r} is no kind of task; there are {', '.join(KINDS)}.")
    if not argument and kind in _NEEDS_ARGUMENT:
        raise UsageError(f"--tasks {text}: write {kind}:{_NEEDS_ARGUMENT[kind]}.")
    extra = dict(extra or {})
    own = {key: extra.pop(key) for key in list(extra) if key in Options.model_fields}
    if own:
        options = options_of(options.model_dump() | own, said=f"task {text}:")
    short = Path(argument).name.removesuffix(".jsonl") if argument and kind != "lm-eval" else argument
    return TaskRequest(kind, argument, name or short or kind, options, domain, extra)


def content_of_files(argument: str) -> str | None:
    """Hash of what an argument names: of a file, or of the manifest of a dataset; None where it names neither."""
    for file in (Path(argument), beside(argument, ".manifest.json"), Path(argument) / "plan.json"):
        if argument and file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()
    return None


def refuse_same_names(requests: Sequence[TaskRequest]) -> None:
    """Raises UsageError where two tasks would stand under one name."""
    names = [request.name for request in requests]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        tasks = [request.task for request in requests if request.name in twice]
        raise UsageError(f"--tasks {' '.join(tasks)}: would be named {', '.join(twice)} alike; evaluate them apart.")
