"""How many documents the samples of one source begin: exact, without reading a token.

A document is begun by the sample that holds its first token. All samples below the window being read are
whole runs of the stream, so blocks are counted; of that window the documents are looked at one by one.
Cost: each block's lengths once; with `with_row_starts` each block of each epoch once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_ext.datasets.cursor import SourceCursor


class Begun(NamedTuple):
    """Documents that begin before a place; those without a token never begin."""

    in_first_pass: int
    in_later_passes: int
    at_row_start: int  # of both; 0 where they are not counted; of an earlier cutting only the difference counts
    masked: int = 0  # labels that do not follow their input (`SourceCursor.seams`)
    torn: int = 0  # pieces that begin behind such a label within a row and a document; 0 where they are not counted


class BegunDocuments:
    """Counts documents of one source.

    Args:
        cursor: Of the source; it is asked for its order, and not moved.
        with_row_starts: Whether to count documents that begin with a row.
    """

    def __init__(self, cursor: SourceCursor, *, with_row_starts: bool) -> None:
        self._cursor, self._with_row_starts = cursor, with_row_starts
        self._tokens, self._length = cursor.documents.num_tokens, cursor.sequence_length
        # Caches of this object's own, as those of TokenStream.
        self.before = lru_cache(maxsize=64)(self._before)  # the begin and end of each phase are asked for at each save
        self._documents_of = lru_cache(maxsize=None)(self._count_documents)
        self._seams = lru_cache(maxsize=1)(self._find_seams)
        self._row_starts_of = lru_cache(maxsize=None)(self._count_row_starts)

    def _before(self, place: int) -> Begun:
        """Documents that begin in the samples before `place` of the reading order; a sample that it cuts counts."""
        cursor, origin = self._cursor, self._cursor.origin
        place = max(origin, origin - (origin - place) // self._length * self._length)
        number, inside = cursor.samples_before(place)
        begin = origin + number * self._length
        in_first, in_later, at_row_start, *_ = self._up_to(begin)
        is_read = np.zeros(0, dtype=np.bool_)
        if len(inside):
            is_read = np.zeros(int(inside.max()) + 1 - number, dtype=np.bool_)
            is_read[inside - number] = True
            starts = cursor.starts(begin, len(is_read) * self._length)
            starts = starts[is_read[(starts - begin) // self._length]]
            first = int(np.count_nonzero(starts < self._tokens))
            in_first, in_later = in_first + first, in_later + len(starts) - first
            at_row_start += self._at_row_start(starts)
        masked, torn = (self._count_read(places, begin, is_read) for places in self._seams())
        return Begun(in_first, in_later, at_row_start, masked, torn)

    def _count_read(self, places: NDArray[np.int64], begin: int, is_read: NDArray[np.bool_]) -> int:
        """Those of some places that lie before `begin`, or behind it in one of the samples that were read."""
        window = places[(places >= begin) & (places < begin + len(is_read) * self._length)]
        in_window = is_read[(window - begin) // self._length]
        return int(np.count_nonzero(places < begin)) + int(np.count_nonzero(in_window))

    def _find_seams(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of inputs whose label is masked, and of tokens that begin a piece within a row and a document."""
        order, origin = self._cursor.order, self._cursor.origin
        seams = np.array(order.places[1:], dtype=np.int64)
        if not len(seams) or not self._with_row_starts:
            return seams - 1, seams[:0]
        starts = self._cursor.starts(origin, order.end + 1 - origin)
        return seams - 1, seams[((seams - origin) % self._length != 0) & ~np.isin(seams, starts)]

    def _up_to(self, place: int) -> Begun:
        """Documents that begin before a place of the reading order, whatever the sample; nothing masked is counted."""
        if place >= self._cursor.order.end:
            return self._up_to_position(place)
        # Behind the window that was cut anew, places are positions; what is left of it until there is taken off.
        rest = self._cursor.starts(place, self._cursor.order.end - place)
        in_first, in_later, at_row_start, *_ = self._up_to_position(self._cursor.order.end)
        first = int(np.count_nonzero(rest < self._tokens))
        return Begun(in_first - first, in_later - len(rest) + first, at_row_start - self._at_row_start(rest))

    def _up_to_position(self, position: int) -> Begun:
        """Documents that begin before a position of the stream."""
        stream = self._cursor.stream
        epoch, place = stream.block_at(position)
        starts = stream.starts_of_block(epoch, place)
        starts = starts[starts < position]
        here = sum(map(self._documents_of, stream.blocks(epoch)[:place].tolist())) + len(starts)
        of_one_pass = sum(map(self._documents_of, stream.blocks(epoch).tolist())) if epoch else here
        at_row_start = self._at_row_start(starts)
        if self._with_row_starts:
            places = [(e, p) for e in range(epoch) for p in range(len(stream.blocks(e)))]
            places += [(epoch, p) for p in range(place)]
            at_row_start += sum(self._row_starts_of(*each) for each in places)
        later = (epoch - 1) * of_one_pass + here if epoch else 0
        return Begun(of_one_pass, later, at_row_start)

    def _at_row_start(self, starts: NDArray[np.int64]) -> int:
        """Of some starts, those at which a row of this cutting begins too.

        Before the cutting's origin, and within a window that was cut anew, what it counts of whole blocks is
        meaningless; it is the same in every count of this cutting, so differences are right.
        """
        starts = starts - self._cursor.origin
        return int(np.count_nonzero(starts % self._length == 0)) if self._with_row_starts else 0

    def _count_documents(self, block: int) -> int:
        return int(np.count_nonzero(self._cursor.documents.lengths_of_block(block)))

    def _count_row_starts(self, epoch: int, place: int) -> int:
        return self._at_row_start(self._cursor.stream.starts_of_block(epoch, place))
