"""The command `study`, whose own commands `megatron_ext/study/cli.py` holds."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ext.cli.verb import Verb


def _verbs() -> Sequence[Verb]:
    from megatron_ext.study.cli import VERBS

    return VERBS


VERBS = (
    Verb(
        "study",
        "study plan recipes/demo/study.yaml",
        "Plan, run and compare arms: chains of stages that differ in where the reasoning data goes.",
        verbs=_verbs,
    ),
)
