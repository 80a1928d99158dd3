"""The commands of `megatron-ext study`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_ext.cli.arguments import positive, run_root_argument
from megatron_ext.cli.verb import Verb


def study_arguments(add: Any) -> None:
    """A study, and what of it is meant."""
    add("study", type=Path, metavar="STUDY", help="a study file, such as recipes/demo/study.yaml")
    add("--site", type=Path, metavar="FILE", help="paths of this place (default: recipes/sites/laptop.yaml)")
    add("--seeds", type=positive, metavar="N", help="replicates of every stage (default: the study's seeds)")
    add("--arms", type=_names, default=(), metavar="A,B", help="these arms alone; '*' stands for any letters")
    run_root_argument(add)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _plan(arguments: argparse.Namespace) -> None:
    from megatron_ext.study.make import make_study_plan

    plan = make_study_plan(
        arguments.study,
        site=arguments.site,
        run_root=arguments.run_root,
        seeds=arguments.seeds,
        arms=arguments.arms,
    )
    print(plan.to_json(), end="")


def _plan_arguments(add: Any) -> None:
    study_arguments(add)


VERBS: tuple[Verb, ...] = (
    Verb(
        "plan",
        "study plan recipes/demo/study.yaml",
        "Show the graph of stages that a study's arms share, what it costs, and how its arms differ.",
        _plan,
        _plan_arguments,
    ),
)
