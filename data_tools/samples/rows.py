"""What every sample source is: a name, what it stands for, and the rows of each of its families."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass
class Tally:
    """Counts that rows themselves do not show; written to the card.

    Attributes:
        left_out: Candidates that gave no row, by reason.
    """

    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class SampleSource:
    """One sample source.

    Attributes:
        name: File name without its end.
        stands_for: The data set whose place it takes.
        description: What it is.
        licence: Of the rows.
        schema: Keys of a row and what they hold.
        parts: Its families; each is made alone, so that several processes can share them.
        num_rows: Most rows of a part, by size; None: all there are.
        row_bytes: Bytes of a row, about; for the progress bar.
        make: Makes the rows of a part from its name, the seed and a tally, until there are no more.
        text: The text of a row.
        family: The family of a row.
        style: How much reasoning a row shows, in a word or two.
        domain: What a row is about.
        versions: Software that decides the rows beside this package and Python.
        is_split: Whether part of the rows is held out; prompts are held out as a whole.
    """

    name: str
    stands_for: str
    description: str
    licence: str
    schema: dict[str, str]
    parts: tuple[str, ...]
    num_rows: dict[str, int | None]
    row_bytes: int
    make: Callable[[str, int, Tally], Iterator[Row]]
    text: Callable[[Row], str]
    family: Callable[[Row], str]
    style: Callable[[Row], str]
    domain: Callable[[Row], str]
    versions: Callable[[], dict[str, str]]
    is_split: bool = True


def content_id(source: str, family: str, content: str) -> str:
    """An id that is the same wherever the same content is made, so its split is too."""
    return f"{source}-{family}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
