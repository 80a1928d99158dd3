"""Command line of `data_tools`: each verb is a file of `data_tools/cli/`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from data_tools.cli import (
    blend,
    chat,
    count,
    inspect,
    merge,
    overlap,
    pack,
    sample,
    status,
    tokenize,
    train_tokenizer,
    verify,
)
from data_tools.command_line import exit_code_of


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
    options = command_parser().parse_args(arguments)
    options.command = shlex.join(["data-tools", *(sys.argv[1:] if arguments is None else arguments)])
    return exit_code_of(lambda: options.verb(options))


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(prog="data-tools", description="Raw text into verified Megatron datasets.")
    parser.example = "python -m data_tools sample --out data/demo/raw"
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)
    for verb in (
        sample,
        train_tokenizer,
        tokenize,
        inspect,
        chat,
        pack,
        blend,
        overlap,
        status,
        merge,
        count,
        verify,
    ):
        verb.add(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
