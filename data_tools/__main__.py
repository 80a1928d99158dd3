"""Command line of `data_tools`: each verb is a file of `data_tools/cli/`."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence

from data_tools.command_line import exit_code_of

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would read the metadata of every installed package

VERBS = (
    "sample",
    "train-tokenizer",
    "tokenize",
    "inspect",
    "chat",
    "pack",
    "blend",
    "overlap",
    "status",
    "merge",
    "count",
    "verify",
)


class _Parser(argparse.ArgumentParser):
    """A parser whose help starts with a command to copy."""

    example = ""

    def format_help(self) -> str:
        return f"Example:\n  {self.example}\n\n{super().format_help()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
        arguments: The command line without the program's name; that of the process when None.

    Returns:
        The exit code; see `data_tools.errors`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    named = [name for name in arguments[:1] if name in VERBS]
    options = command_parser(named or VERBS).parse_args(arguments)
    options.command = shlex.join(["data-tools", *arguments])
    return exit_code_of(lambda: options.verb(options))


def command_parser(names: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        names: Of the verbs that it knows; those of a command that names one need not load the others.
    """
    parser = _Parser(prog="data-tools", description="Raw text into verified Megatron datasets.")
    parser.example = "python -m data_tools sample --out data/demo/raw"
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)
    for name in names:
        importlib.import_module(f"data_tools.cli.{name.replace('-', '_')}").add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
