"""Which token of a source comes next, when the cutting into samples changes in the middle of a window.

Samples of a window are read shuffled. When a stage goes on at another sequence length, what is left of the
window lies in runs between samples that were read. These runs are laid end to end, and cut anew, before the
stream goes on behind the window: nothing is left out, and nothing is read twice.

*Place* counts the tokens of a source before one in the order of reading, *position* those before it in the
stream; they differ in such a window only. Worked example: a window of 4 samples of 4 tokens of which the
samples 2 and 0 were read leaves 4..7 and 12..15. Read were 8 tokens, so places 8..11 are positions 4..7, and
from place 12 on both are equal. At place 8 the runs begin; at 12 is a *seam*: the token there does not follow
the one before it in any document, and is not trained on as its label.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Run(NamedTuple):
    """Tokens that follow one another in the stream."""

    position: int
    length: int


class ReadingOrder:
    """Places and positions of a source from some place on.

    Attributes:
        places: Of each run, the first token's place, rising; the last run is endless.
        positions: Its position.
    """

    def __init__(self, places: Iterable[int] = (0,), positions: Iterable[int] = (0,)) -> None:
        """Takes runs; without any, places are positions."""
        self.places, self.positions = list(places), list(positions)

    def seams(self, place: int, num_tokens: int) -> list[int]:
        """Places among the tokens from `place` on whose token does not follow the one before it, rising."""
        first = max(1, bisect_left(self.places, place))
        return self.places[first : bisect_left(self.places, place + num_tokens)]

    @property
    def end(self) -> int:
        """From this place on, places are positions, and every token before it comes before it in both."""
        return self.places[-1] if self.places[1:] else 0

    def runs(self, place: int, num_tokens: int) -> Iterator[Run]:
        """Where the tokens from `place` on lie, in the order of reading."""
        at, end = bisect_right(self.places, place) - 1, place + num_tokens
        assert at >= 0, f"place {place} lies before {self.places[0]}, where this order begins"
        while place < end:
            stop = min(end, self.places[at + 1]) if at + 1 < len(self.places) else end
            yield Run(self.positions[at] + place - self.places[at], stop - place)
            place, at = stop, at + 1

    def without_read(self, place: int, *, unread: Iterable[Run], window_end: int) -> ReadingOrder:
        """The order behind a window of which a part was read.

        Args:
            place: Tokens that were read, or passed over, before.
            unread: What is left of the window, by its places of this order, rising.
            window_end: The place behind the window.
        """
        begins: list[tuple[int, int]] = []  # (place, position) of each run
        for position, length in (run for part in unread for run in self.runs(*part)):
            begins.append((place, position))
            place += length
        assert place == window_end, f"the unread samples end at place {place}, their window at {window_end}"
        begins.append((window_end, next(self.runs(window_end, 1)).position))
        begins += [run for run in zip(self.places, self.positions, strict=True) if run[0] > window_end]
        # A run that goes on where the last one ends is no run of its own.
        shifts = [None, *(place - position for place, position in begins)]
        kept = [begin for begin, before in zip(begins, shifts, strict=False) if begin[0] - begin[1] != before]
        return ReadingOrder(*zip(*kept, strict=True))
