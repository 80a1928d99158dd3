"""Arguments that several commands of a study take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_ext.cli.arguments import positive, run_root_argument


def study_arguments(add: Any, *, takes_record: bool) -> None:
    """A study and its place.

    Args:
        add: Declares an argument.
        takes_record: Whether the study may be the `study.json` of a run.
    """
    record = ", or the study.json that a run has left" if takes_record else ""
    add("study", type=Path, metavar="STUDY", help=f"a study file, such as recipes/demo/study.yaml{record}")
    add("--site", type=Path, metavar="FILE", help="paths of this place (default: recipes/sites/laptop.yaml)")
    run_root_argument(add)


def choice_arguments(add: Any, *, default_seeds: str) -> None:
    """What of a study is meant.

    Args:
        add: Declares an argument.
        default_seeds: Whose replicates count where none are asked for.
    """
    add("--seeds", type=positive, metavar="N", help=f"replicates of every stage (default: {default_seeds})")
    add("--arms", type=_names, default=(), metavar="A,B", help="these arms alone; '*' stands for any letters")


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say of a study's place, and of what is meant of it."""
    return {name: getattr(arguments, name) for name in ("site", "run_root", "seeds", "arms")}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
