"""The options `--where` and `--answer-rule`, which several verbs take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_tools.selection import AnswerRule, Where


def add_where(parser: argparse.ArgumentParser) -> None:
    """Adds `--where`."""
    parser.add_argument(
        "--where",
        metavar="FILTER",
        help="take these and count the others: 'answer_tokens > 4096', 'text_tokens <= 8192', joined by and",
    )


def add_answer_rule(parser: argparse.ArgumentParser) -> None:
    """Adds `--answer-rule`."""
    parser.add_argument(
        "--answer-rule", metavar="after:REGEX", help="where answers start in texts that mark none: 'after: output: '"
    )


def where_of(options: argparse.Namespace) -> Where | None:
    """The filter that was given.

    Raises:
        UsageError: If it is none.
    """
    if options.where is None:
        return None
    from data_tools.selection import Where

    return Where.parse(options.where)


def answer_rule_of(options: argparse.Namespace) -> AnswerRule | None:
    """The rule that was given.

    Raises:
        UsageError: If it is none.
    """
    if options.answer_rule is None:
        return None
    from data_tools.selection import AnswerRule

    return AnswerRule.parse(options.answer_rule)
