"""The command line: `megatron-ext VERB …`, or `python -m megatron_ext VERB …`.

    python -m megatron_ext plan recipes/demo/pretrain.yaml

Only `trace`, `generate`, `evaluate`, `export`, `import`, `doctor` and `validate --isolation` import torch, when they
run (`trace` for Megatron-Core's reader of `.idx`, which imports it): the others answer in about a second on any laptop.
Exit codes: see data_tools/errors.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_tools.command_line import exit_code_of
from data_tools.errors import UsageError
from megatron_ext.cli import checkpoints, plan, recipes, stages, study
from megatron_ext.cli.verb import ExampleFirst, Verb, add_verbs


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["run"]:
        return exit_code_of(_refuse_run)
    named = [verb for verb in VERBS if argv[:1] == [verb.name]]
    arguments = build_parser(named or VERBS).parse_args(argv)
    return exit_code_of(lambda: arguments.handler(arguments))


def _refuse_run() -> None:
    raise UsageError(f"run: a stage is trained by another program: {RUN}; the same behind torchrun on several ranks.")


RUN = "python -m megatron_ext.run RECIPE"


def _doctor(arguments: argparse.Namespace) -> int | None:
    from megatron_ext.runtime.doctor import print_report

    return print_report()


VERBS: tuple[Verb, ...] = (
    *plan.VERBS,
    *recipes.VERBS,
    *stages.VERBS,
    *checkpoints.VERBS,
    *study.VERBS,
    Verb("doctor", "doctor", "Say what this machine has installed and what that means.", _doctor),
)


def build_parser(verbs: Sequence[Verb] = VERBS) -> argparse.ArgumentParser:
    """The command line.

    Args:
        verbs: Those that it knows; a command line that names one need not load what the others take.
    """
    parser = ExampleFirst(
        prog="megatron-ext",
        description="Decide where reasoning data goes, and find out by training.",
        epilog=f"Training itself: {RUN}",
    )
    parser.example = "python -m megatron_ext plan recipes/demo/pretrain.yaml"
    add_verbs(parser, verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
