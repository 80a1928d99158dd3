"""A suite: tasks under names, options that they share, and the numbers that are made of them. YAML, strict.

    suite: demo
    options: {samples: 4, temperature: 0.7}
    tasks:
      - {task: "verifiable:data/digit.eval.jsonl", name: digit, domain: math}
      - {task: "lm-eval:gsm8k", domain: math, num_fewshot: 8}     # keys that are no option go to the kind
    aggregates:
      - {name: math, mean_of: [digit, gsm8k]}
      - {name: average, mean_of: [math]}                          # of tasks, or aggregates above

A file is relative to where the command runs, as on the command line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from data_tools.errors import RecipeError
from data_tools.strict_yaml import load_yaml
from megatron_ext.evaluate.options import Options, options_of
from megatron_ext.evaluate.results import Aggregate, TaskResult
from megatron_ext.evaluate.tasks import TaskRequest, read_request, refuse_same_names
from megatron_ext.recipe.locate import locate


class SuiteTask(BaseModel):
    """One task of a suite; keys beside these are options, or the kind's own."""

    model_config = ConfigDict(frozen=True, extra="allow")

    task: str
    name: str | None = None
    domain: str = ""

    @property
    def extra(self) -> dict[str, Any]:
        """The other keys."""
        return dict(self.model_extra or {})


class SuiteMean(BaseModel):
    """The unweighted mean of tasks' headline metrics, or of aggregates that stand above."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    mean_of: tuple[str, ...]


class Suite(BaseModel):
    """All of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    options: dict[str, Any] = {}
    tasks: tuple[SuiteTask, ...]
    aggregates: tuple[SuiteMean, ...] = ()

    @property
    def name(self) -> str:
        """Of the suite."""
        return self.suite

    def requests(self, options: Options | None = None) -> list[TaskRequest]:
        """Its tasks; what an entry sets stands over `options`, which are its own where none are given."""
        asked = options or options_of(self.options, said="options:")
        return [read_request(one.task, asked, name=one.name, domain=one.domain, extra=one.extra) for one in self.tasks]

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        asked = self.requests()
        refuse_same_names(asked)
        known = {one.name for one in asked}
        for mean in self.aggregates:
            if mean.name in known:
                raise ValueError(f"aggregates: {mean.name}: is the name of a task or another mean; name it otherwise")
            unknown = [name for name in mean.mean_of if name not in known]
            if unknown or not mean.mean_of:
                raise ValueError(
                    f"aggregates: {mean.name}: mean_of: {', '.join(unknown) or 'nothing'}: no task, and no mean above; "
                    f"there are {', '.join(sorted(known))}"
                )
            known.add(mean.name)
        return self

    def aggregate(self, results: Sequence[TaskResult]) -> list[Aggregate]:
        """The numbers that are made of some tasks; one that misses a task has no value, and says so."""
        values: dict[str, float | None] = {result.name: result.metric().value for result in results}
        found = []
        for one in self.aggregates:
            missing = tuple(name for name in one.mean_of if values.get(name) is None)
            parts = [value for name in one.mean_of if (value := values.get(name)) is not None]
            value = None if missing else math.fsum(parts) / len(parts)
            values[one.name] = value
            found.append(Aggregate(name=one.name, value=value, rule="mean", of=one.mean_of, missing=missing))
        return found


def is_suite(path: Path) -> bool:
    """Whether a YAML file says that it is one."""
    return "suite" in load_yaml(locate(path)).data


def read_suite(path: Path) -> Suite:
    """Reads a suite.

    Raises:
        RecipeError: It is no suite; names file and key.
    """
    tree = load_yaml(locate(path))
    try:
        return Suite.model_validate(tree.data)
    except ValidationError as error:
        places = [(".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors()]
        lines = [f"{path}: {f'{place}: ' if place else ''}{message}" for place, message in places]
        raise RecipeError("\n".join(lines)) from None
