"""On every run a sample of the documents is encoded by both libraries, and a difference ends the job.

Of each document in the sample at most `EXCERPT_CHARACTERS` are compared, from its start or from further
in, so that the check costs the same for documents of any length: 1,000 of them take about a quarter of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer

EXCERPT_CHARACTERS = 512
_FIRST_BLOCK = 32
"""Documents compared of the first block at least, so that a tokenizer that never agrees stops at once."""


class EngineCheck:
    """Compares the fast engine with the reference.

    Attributes:
        compared: Documents compared so far; 0 where the reference itself encodes.
    """

    def __init__(self, tokenizer: Tokenizer, *, documents: int, total_bytes: int) -> None:
        """Plans the sample.

        Args:
            tokenizer: Has both.
            documents: How many to compare.
            total_bytes: Of the input, over which they are spread; 0 where it is not known: the first ones.
        """
        self._tokenizer = tokenizer
        self._documents = documents
        self._total_bytes = total_bytes
        self._bytes_seen = 0
        self.compared = 0
        chosen: object = tokenizer.chosen.engine
        self._is_needed = chosen is not tokenizer.reference

    def check(self, texts: Sequence[str], size: int, place: Callable[[int], str]) -> None:
        """Compares some texts of a block.

        Args:
            texts: All of the block.
            size: Bytes of input that the block took.
            place: `file:line` of the text of this number, for messages.

        Raises:
            DataError: At the first difference.
        """
        self._bytes_seen += size
        due = min(self._due() - self.compared, len(texts))
        if due <= 0 or not self._is_needed:
            return
        chosen = [len(texts) * number // due for number in range(due)]
        excerpts = [self._excerpt(texts[number], self.compared + count) for count, number in enumerate(chosen)]
        self._compare(excerpts, lambda number: place(chosen[number]))
        self.compared += due

    def _due(self) -> int:
        if not self._total_bytes:
            return self._documents
        share = self._documents * self._bytes_seen // self._total_bytes
        return min(self._documents, max(share, _FIRST_BLOCK))

    def _excerpt(self, text: str, number: int) -> str:
        start = EXCERPT_CHARACTERS * number % max(1, len(text) - EXCERPT_CHARACTERS)
        return text[start : start + EXCERPT_CHARACTERS]

    def _compare(self, excerpts: Sequence[str], place: Callable[[int], str]) -> None:
        engine, reference = self._tokenizer.chosen.engine, self._tokenizer.reference
        pairs = zip(engine.encode_batch(excerpts), reference.encode_batch(excerpts), strict=True)
        for number, (ids, expected) in enumerate(pairs):
            if np.array_equal(ids, expected):
                continue
            shared = min(len(ids), len(expected))
            first = next((at for at in range(shared) if ids[at] != expected[at]), shared)
            raise DataError(
                f"{place(number)}: {engine.name} {engine.version} and {reference.name} {reference.version} "
                f"give other ids for the same text: token {first} of {excerpts[number][:60]!r}… is "
                f"{_id_at(ids, first)} and {_id_at(expected, first)}; give --bpe tokenizers"
            )


def _id_at(ids: npt.NDArray[np.uint32], position: int) -> str:
    return str(ids[position]) if position < len(ids) else "not there"
