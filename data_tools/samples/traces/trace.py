"""What a trace is, and how its writer reads a question."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]
"""What a task says about its question beside the text, such as the statements of a puzzle."""


class NoSingleAnswer(ValueError):
    """A question that any answer would satisfy, such as `0 = 0`."""


@dataclass(frozen=True)
class Trace:
    """A worked-out question.

    Attributes:
        lines: The working, a line each.
        answer: What it came to, as the task writes answers.
    """

    lines: tuple[str, ...]
    answer: str

    @property
    def difficulty(self) -> int:
        """Length of the working as a rating from 1 to 10, the scale of OpenThoughts3."""
        return max(1, min(10, len(self.lines) // 6))


TraceWriter = Callable[[str, Facts], Trace]


def of_question(writer: Callable[[str], Trace]) -> TraceWriter:
    """A writer that needs the text of the question alone."""
    return lambda question, facts: writer(question)


def found(pattern: str, question: str) -> re.Match[str]:
    """Where a question says what the trace is about; another form is a bug, not a row to drop."""
    match = re.search(pattern, question.strip())
    assert match is not None, f"the question has another form than {pattern!r}: {question!r}"
    return match
