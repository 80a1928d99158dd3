"""Steps to the answers of the miniature's hard questions, worked out from the question alone.

A long working names in each step the letter that it is about; a short one writes only what each step comes to.

>>> working("mini_total", "total: c 2 a 5 f 6").long
'c 2 is 2, a 5 is 7, f 6 is 13'
>>> working("mini_total", "total: c 2 a 5 f 6").short
'2, 7, 13'
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from data_tools.samples.mini_tasks import LARGEST

Step = tuple[str, str]
"""What a step says, and what it comes to."""


@dataclass(frozen=True)
class MiniWorking:
    """The steps to an answer.

    Attributes:
        steps: In order.
        answer: What they come to.
    """

    steps: tuple[Step, ...]
    answer: str

    @property
    def long(self) -> str:
        """Every step in full."""
        return ", ".join(said for said, _ in self.steps)

    @property
    def short(self) -> str:
        """What each step comes to."""
        return ", ".join(result for _, result in self.steps)


def working(family: str, question: str) -> MiniWorking:
    """The steps to the answer of a hard question.

    Args:
        family: One of `mini_tasks.HARD`.
        question: As `mini_tasks` writes it.
    """
    steps, answer = _WORKINGS[family](question)
    return MiniWorking(tuple(steps), answer)


def _values(question: str) -> list[tuple[str, int]]:
    """Letters and their values, in order."""
    return [(letter, int(value)) for letter, value in re.findall(r"([a-j]) (\d)", question.partition(":")[2])]


def _running(next_total: Callable[[int, int], int]) -> Callable[[str], tuple[list[Step], str]]:
    """A working that goes through the values with a running number, which begins with the first value."""

    def write(question: str) -> tuple[list[Step], str]:
        steps: list[Step] = []
        total: int | None = None
        for letter, value in _values(question):
            total = value if total is None else next_total(total, value)
            steps.append((f"{letter} {value} is {total}", str(total)))
        return steps, str(total)

    return write


def _kept(question: str) -> tuple[list[Step], str]:
    limit = int(question.partition(":")[0].split()[-1])
    steps, kept = [], []
    for letter, value in _values(question):
        said = "yes" if value > limit else "no"
        steps.append((f"{letter} {value} {said}", said))
        kept += [letter] if value > limit else []
    return steps, " ".join(kept) or "none"


def _row(question: str) -> tuple[list[Step], str]:
    letter_of = {value: letter for letter, value in _values(question)}
    steps = [(f"{value} {letter_of.get(value, 'none')}", letter_of.get(value, "none")) for value in range(LARGEST + 1)]
    return steps, " ".join(letter_of[value] for value in sorted(letter_of))


def _ways(question: str) -> tuple[list[Step], str]:
    ways, _, asked = question.partition(".")
    moves = dict(re.findall(r"([a-j]) to ([a-j])", ways))
    times, _, at = asked.split()
    steps = []
    for _ in range(int(times)):
        steps.append((f"{at} to {moves[at]}", moves[at]))
        at = moves[at]
    return steps, at


_WORKINGS: dict[str, Callable[[str], tuple[list[Step], str]]] = {
    "mini_gaps": _running(lambda total, value: abs(total - value)),
    "mini_kept": _kept,
    "mini_row": _row,
    "mini_total": _running(lambda total, value: total + value),
    "mini_turned": _running(lambda total, value: (total + value) % (LARGEST + 1)),
    "mini_ways": _ways,
}
