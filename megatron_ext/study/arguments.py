"""Arguments that several commands of a study take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ext.cli.arguments import positive, run_root_argument


def study_arguments(add: Any) -> None:
    """A study, and what of it is meant."""
    add(
        "study",
        type=Path,
        metavar="STUDY",
        help="a study file, such as recipes/demo/study.yaml; but to plan and run, also the study.json of a run",
    )
    add("--site", type=Path, metavar="FILE", help="paths of this place (default: recipes/sites/laptop.yaml)")
    add(
        "--seeds",
        type=positive,
        metavar="N",
        help="replicates of every stage (default: the study's; to report, those of its last run)",
    )
    add("--arms", type=_names, default=(), metavar="A,B", help="these arms alone; '*' stands for any letters")
    run_root_argument(add)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
