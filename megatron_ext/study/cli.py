"""The commands of `megatron-ext study`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.errors import UsageError
from megatron_ext.cli.verb import Verb
from megatron_ext.study.arguments import choice_arguments, chosen, study_arguments
from megatron_ext.study.compare_verbs import COMPARE_VERBS
from megatron_ext.study.report_verbs import REPORT_VERBS
from megatron_ext.study.run_verbs import RUN_VERBS

if TYPE_CHECKING:
    from megatron_ext.study.study_plan import Hardware


def _plan(arguments: argparse.Namespace) -> None:
    from megatron_ext.study.graph import write_graph
    from megatron_ext.study.make import make_study_plan
    from megatron_ext.study.render import print_study_plan

    plan = make_study_plan(arguments.study, **chosen(arguments), hardware=_hardware(arguments))
    if arguments.graph is not None:
        write_graph(plan, arguments.graph)
    if arguments.json:
        print(plan.to_json(), end="")
    else:
        print_study_plan(plan)


def _hardware(arguments: argparse.Namespace) -> Hardware | None:
    from megatron_ext.study.study_plan import Hardware

    if arguments.mfu is None and arguments.gpu is None:
        return None
    if arguments.mfu is None or arguments.gpu is None:
        raise UsageError("study plan: --mfu and --gpu belong together; a time without either would be a guess.")
    return Hardware(gpu=arguments.gpu, mfu=arguments.mfu)


def _plan_arguments(add: Any) -> None:
    study_arguments(add, takes_record=False)
    choice_arguments(add, default_seeds="those of the study")
    add("--mfu", type=float, metavar="RATIO", help="say GPU-hours at this share of the peak, such as 0.45; with --gpu")
    add("--gpu", metavar="GPU", help="h100, h200, a100, or dense bf16 peak in TFLOP/s, such as 989.4; with --mfu")
    add("--graph", type=Path, metavar="FILE", help="also draw the graph of stages: FILE.svg, or FILE.dot for Graphviz")
    add("--json", action="store_true", help="print the plan alone, as JSON")


VERBS: tuple[Verb, ...] = (
    Verb(
        "plan",
        "study plan recipes/demo/study.yaml",
        "Show the graph of stages that a study's arms share, what it costs, and how its arms differ.",
        _plan,
        _plan_arguments,
        "study plan recipes/front_loading/study.yaml --gpu h100 --mfu 0.4 --graph study.svg",
    ),
    *RUN_VERBS,
    *REPORT_VERBS,
    *COMPARE_VERBS,
)
