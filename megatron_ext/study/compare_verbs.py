"""The command `megatron-ext study compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_ext.cli.study import study_of_arms
from megatron_ext.cli.verb import Verb


def _compare(arguments: argparse.Namespace) -> None:
    from megatron_ext.study.comparison.make import compare_sides
    from megatron_ext.study.comparison.sides import side_named
    from megatron_ext.study.named import study_named

    study = None
    if arguments.study is not None:
        study = study_named(arguments.study, site=arguments.site, run_root=arguments.run_root)
    comparison = compare_sides(side_named(arguments.first, study), side_named(arguments.second, study), study)
    if arguments.output is not None:
        from megatron_ext.study.comparison.picture import write_picture

        write_picture(comparison, arguments.output)
    if arguments.json:
        print(comparison.model_dump_json(indent=1))
    else:
        from megatron_ext.study.comparison.view import print_comparison

        print_comparison(comparison)


def _compare_arguments(add: Any) -> None:
    add("first", metavar="A", help="a stage's folder, or one of its checkpoints/step_N; with --study an arm")
    add("second", metavar="B", help="likewise")
    add("--json", action="store_true", help="print the comparison alone, as JSON")
    add("-o", "--output", type=Path, metavar="FILE", help="also draw the held-out curves, as SVG")
    study_of_arms(add)


COMPARE_VERBS = (
    Verb(
        "compare",
        "study compare base-shq shq-shq --study recipes/demo/study.yaml",
        "Put two arms, or two stages, side by side: what they are, what they read, their curves, what was found.",
        _compare,
        _compare_arguments,
        "study compare runs/stages/pretrain-ID runs/stages/pretrain-OTHER -o curves.svg",
    ),
)
