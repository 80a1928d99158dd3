"""The commands of `megatron-ext study`."""

from __future__ import annotations

import argparse
from typing import Any

from megatron_ext.cli.verb import Verb
from megatron_ext.study.arguments import study_arguments
from megatron_ext.study.run_verbs import RUN_VERBS


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
    *RUN_VERBS,
)
