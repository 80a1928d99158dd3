"""The command `study`, whose own commands `megatron_ext/study/cli.py` holds, and `lineage`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.cli.arguments import run_root_argument
from megatron_ext.cli.verb import Verb

DAMAGED = 3


def _verbs() -> Sequence[Verb]:
    from megatron_ext.study.cli import VERBS

    return VERBS


def _lineage(arguments: argparse.Namespace) -> int:
    from megatron_ext.study.lineage.read import read_lineage
    from megatron_ext.study.named import checkpoint_named

    path = checkpoint_named(arguments.what, study=arguments.study, site=arguments.site, run_root=arguments.run_root)
    lineage = read_lineage(path, asked=arguments.what)
    if arguments.verify:
        from megatron_ext.study.lineage.verify import verified

        lineage = verified(lineage)
    if arguments.graph is not None:
        from megatron_ext.study.lineage.graph import write_graph

        write_graph(lineage, arguments.graph)
    if arguments.ro_crate is not None:
        from megatron_ext.study.lineage.crate import write_crate

        write_crate(lineage, arguments.ro_crate)
    if arguments.json:
        print(lineage.model_dump_json(indent=1))
    else:
        from megatron_ext.study.lineage.tree import print_lineage

        print_lineage(lineage)
    return DAMAGED if any(check.damage for check in lineage.checks or ()) else 0


def _lineage_arguments(add: Any) -> None:
    add("what", metavar="CHECKPOINT", help="a stage's folder, or one of its checkpoints/step_N; with --study an arm")
    add("--json", action="store_true", help="print the lineage alone, as JSON")
    add("--ro-crate", type=Path, metavar="DIR", help="also make a folder of RO-Crate metadata and the records it names")
    add("--graph", type=Path, metavar="FILE", help="also draw it, as SVG")
    add("--verify", action="store_true", help="read every byte of checkpoints and datasets; exit 3 where one changed")
    study_of_arms(add)


def study_of_arms(add: Any) -> None:
    """The study whose arms are named."""
    add(
        "--study",
        type=Path,
        metavar="STUDY",
        help="a study file or study.json, whose arm is meant; ARM#1 is replicate 1",
    )
    add("--site", type=Path, metavar="FILE", help="with --study: paths of this place")
    run_root_argument(add)


VERBS = (
    Verb(
        "study",
        "study plan recipes/demo/study.yaml",
        "Plan, run and compare arms: chains of stages that differ in where the reasoning data goes.",
        verbs=_verbs,
    ),
    Verb(
        "lineage",
        "lineage runs/stages/pretrain-*",
        "Say what a checkpoint was made of: stages, code, tokenizer, sources with their terms, and what is not known.",
        _lineage,
        _lineage_arguments,
        "lineage runs/stages/rl-* --verify",
    ),
)
