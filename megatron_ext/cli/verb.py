"""What a command of the command line is, and its parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


def _no_arguments(add: Any) -> None:
    """Declares nothing."""


@dataclass(frozen=True)
class Verb:
    """One command of the command line."""

    name: str
    example: str  # runs on the sample data, after `make demo`
    summary: str
    handler: Callable[[argparse.Namespace], int | None] | None = None
    arguments: Callable[[Any], None] = _no_arguments
    another: str = ""  # a second example, of fine-tuning
    verbs: Callable[[], Sequence[Verb]] | None = None  # its sub-commands, instead of a handler of its own


class ExampleFirst(argparse.ArgumentParser):
    """A parser whose help starts with a command that can be typed as it stands."""

    example = ""

    def format_help(self) -> str:
        """The example, an empty line, and what argparse says."""
        return f"{self.example}\n\n{super().format_help()}" if self.example else super().format_help()


def add_verbs(parser: argparse.ArgumentParser, verbs: Sequence[Verb], *, dest: str = "verb") -> None:
    """Registers commands; what a command takes is asked of it here, so only of those that are registered.

    Args:
        parser: Of the program, or of a command that has commands of its own.
        verbs: The commands.
        dest: Where the parsed arguments keep the command's name.
    """
    parsers = parser.add_subparsers(dest=dest, metavar="VERB", required=True, parser_class=ExampleFirst)
    for verb in verbs:
        sub = parsers.add_parser(verb.name, help=verb.summary, description=verb.summary)
        sub.example = "\n".join(f"python -m megatron_ext {words}" for words in (verb.example, verb.another) if words)
        verb.arguments(sub.add_argument)
        if verb.verbs is not None:
            add_verbs(sub, verb.verbs(), dest=f"{verb.name}_verb")
        else:
            sub.set_defaults(handler=verb.handler)
