"""Tokens as text in which what is trained on can be told from what is not: in colour, or in brackets.

`⟦` and `⟧` (U+27E6, U+27E7) stand around what is trained on, so that a pipe loses nothing that a terminal shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.text import Text

from data_tools.tokenizer import Tokenizer

BRACKETS = "⟦", "⟧"
_TRAINED, _NOT_TRAINED = "bold green", "dim"

Run = tuple[str, bool]
"""Some text, and whether it is trained on."""


def runs_of(ids: npt.NDArray[Any], trained: npt.NDArray[np.bool_] | None, tokenizer: Tokenizer | None) -> list[Run]:
    """The text of some tokens, cut where the mask changes.

    The text is decoded as a whole and then cut, since a piece decoded alone may lose the space before it;
    a character that lies across a cut goes to the run that holds its last token.

    Args:
        ids: [tokens].
        trained: [tokens] whether each is trained on; None: all are.
        tokenizer: Makes text of them; None: the numbers are the text.
    """
    if trained is None:
        trained = np.ones(len(ids), bool)
    cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    numbers = ids.tolist()
    if tokenizer is None:
        return [
            ("".join(f"{number} " for number in numbers[start:stop]), bool(trained[start]))
            for start, stop in itertools.pairwise(cuts)
            if start < stop
        ]
    whole = tokenizer.decode(numbers)
    ends = [_shared(whole, tokenizer.decode(numbers[:cut])) for cut in cuts[1:-1]]
    edges = [0, *ends, len(whole)]
    return [
        (whole[start:stop], bool(trained[first]))
        for (start, stop), first in zip(itertools.pairwise(edges), cuts, strict=False)
        if start < stop
    ]


def _shared(whole: str, head: str) -> int:
    """Characters of the whole that its head gives; a half character at the end of the head is none of them."""
    size = len(head)
    while size and not whole.startswith(head[:size]):
        size -= 1
    return size


def bracketed(runs: Sequence[Run]) -> str:
    """All runs as one text, those that are trained on in brackets; text that is all trained on has none.

    >>> bracketed([("1 + 1?", False), ("2", True)])
    '1 + 1?⟦2⟧'
    """
    if all(trained for _, trained in runs):
        return "".join(text for text, _ in runs)
    return "".join(f"{BRACKETS[0]}{text}{BRACKETS[1]}" if trained else text for text, trained in runs)


def coloured(runs: Sequence[Run]) -> Text:
    """All runs as one text, those that are trained on green, the others dim; text that is all trained on is plain."""
    if all(trained for _, trained in runs):
        return Text("".join(text for text, _ in runs))
    return Text.assemble(*((text, _TRAINED if trained else _NOT_TRAINED) for text, trained in runs))
