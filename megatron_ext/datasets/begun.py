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
    at_row_start: int  # of both; 0 where they are not counted


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
        self._row_starts_of = lru_cache(maxsize=None)(self._count_row_starts)

    def _before(self, place: int) -> Begun:
        """Documents that begin in the samples before `place` of the reading order."""
        number, inside = self._cursor.samples_before(place)
        begin = number * self._length
        in_first, in_later, at_row_start = self._up_to(begin)
        if len(inside):
            is_read = np.zeros(int(inside.max()) + 1 - number, dtype=np.bool_)
            is_read[inside - number] = True
            starts = self._cursor.stream.starts(begin, len(is_read) * self._length)
            starts = starts[is_read[(starts - begin) // self._length]]
            first = int(np.count_nonzero(starts < self._tokens))
            in_first, in_later = in_first + first, in_later + len(starts) - first
            at_row_start += self._at_row_start(starts)
        return Begun(in_first, in_later, at_row_start)

    def _up_to(self, position: int) -> Begun:
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
        return int(np.count_nonzero(starts % self._length == 0)) if self._with_row_starts else 0

    def _count_documents(self, block: int) -> int:
        return int(np.count_nonzero(self._cursor.documents.lengths_of_block(block)))

    def _count_row_starts(self, epoch: int, place: int) -> int:
        return self._at_row_start(self._cursor.stream.starts_of_block(epoch, place))
