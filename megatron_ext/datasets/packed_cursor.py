"""Where the reading of one packed source stands: (epoch, window, position), where a window is a run of documents.

Rows hold whole documents (`plan/packed_rows.py`). An epoch permutes the windows, then the rows of each, and which of
the equally long documents of a window takes which place: other documents meet in a row in every epoch. Rows end with
their window and their epoch, so no row wraps. What is held is a line of counts a window, and two windows packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset import read_dataset
from data_tools.permutation import keyed_permutation
from megatron_ext.datasets.cursor import EpochSample
from megatron_ext.datasets.documents import Documents, Span
from megatron_ext.datasets.saved_place import are_counts, no_place_error, require_same
from megatron_ext.datasets.shards import ShardedDocuments
from megatron_ext.plan.packed_rows import (
    NO_ROWS,
    LongDocuments,
    PackedWindow,
    RowCounts,
    Thinking,
    Window,
    count_rows,
    pack_window,
    policy_for,
    sum_counts,
    windows_of,
)
from megatron_ext.plan.stage_plan import SourcePlan, StagePlan

_WINDOWS_HELD = 2  # the one being read and, at its end, the next: some 0.1 MB each
_EPOCHS_HELD = 2


class _EpochOrder(NamedTuple):
    windows: NDArray[np.int64]  # [windows], in reading order
    ends: NDArray[np.int64]  # [windows], rows of the epoch up to the end of each


class _WindowOrder(NamedTuple):
    packed: PackedWindow
    rows: NDArray[Any]  # [rows], in reading order


class CountedRows(NamedTuple):
    """What the rows before a place hold."""

    first_pass: RowCounts  # of those in the first pass alone
    all_passes: RowCounts


class PackedCursor:
    """Reads the packed rows of one source, each epoch in its own order, from any point on; see `SourceCursor`.

    The order depends on the seed, the source's content, the sequence length and what becomes of long documents;
    not on shares, budgets, other sources or ranks.
    """

    def __init__(
        self,
        documents: Documents | ShardedDocuments,
        *,
        windows: Sequence[Window],
        counts: Sequence[RowCounts],
        seed: int,
        sequence_length: int,
        long_documents: LongDocuments,
        padding_id: int,
        thinking: Thinking | None = None,
    ) -> None:
        """Stands before the first row.

        Args:
            documents: The source.
            windows: `windows_of` it.
            counts: `count_rows` of it.
            seed: Seed of the order.
            sequence_length: Positions of a row; as read it has one more, the label of its last token.
            long_documents: What becomes of documents longer than a row.
            padding_id: Fills the places behind the last document of a row.
            thinking: Where the documents think; needed for `trim-thinking`.
        """
        self.documents = documents
        self.sequence_length = sequence_length
        self._seed, self.long_documents, self._padding_id = seed, long_documents, padding_id
        self._thinking = thinking
        self._windows = windows
        self._counts = np.array(counts, dtype=np.int64)  # [windows, fields of RowCounts]
        assert len(windows) == len(counts), "both are of the same dataset and window_pieces"
        self._rows_of = self._counts[:, RowCounts._fields.index("rows")]
        self.rows_of_pass = int(self._rows_of.sum())
        assert self.rows_of_pass, "a source without a row is refused in the plan"
        self._key = f"{seed}/{documents.data_id}"
        self._order = lru_cache(maxsize=_EPOCHS_HELD)(self._permute_epoch)
        self._packed = lru_cache(maxsize=_WINDOWS_HELD)(self._pack_window)
        self._epoch = self._window = self._position = 0

    @property
    def place(self) -> int:
        """Positions of rows that lie before the cursor, whether they were read or passed over."""
        return (self._epoch * self.rows_of_pass + self._first_row(self._epoch, self._window) + self._position) * (
            self.sequence_length
        )

    @property
    def cutting(self) -> str:
        """What decides which tokens a row holds."""
        return f"{self.sequence_length} packed, {self.long_documents}"

    def draw(self) -> EpochSample:
        """The next row in reading order; the cursor moves behind it. Nothing is read from disk but lengths."""
        while self._position == self._rows_of_window(self._epoch, self._window):
            self._position, self._window = 0, self._window + 1
            if self._window == len(self._counts):
                self._epoch, self._window = self._epoch + 1, 0
        row = self._first_row(self._epoch, self._window) + self._position
        self._position += 1
        return EpochSample(self._epoch, row)

    def start_afresh(self) -> None:
        """Moves to the next pass over the source; what is left of this one is not read."""
        if self.place > self._epoch * self.rows_of_pass * self.sequence_length:
            self._epoch, self._window, self._position = self._epoch + 1, 0, 0

    def replay(self) -> None:
        """Moves back to the beginning, to read the same rows in the same order again."""
        self._epoch = self._window = self._position = 0

    def locate(self, epoch_sample: EpochSample) -> list[Span]:
        """The documents and offsets of a row's tokens, in reading order; a trimmed document has two spans.

        Where a long document goes on in another row, its next token belongs to this one too, as a label.
        """
        first, packed, pieces = self._pieces(epoch_sample)
        spans: list[Span] = []
        for piece in pieces:
            document, start, length = (
                first + int(packed.document[piece]),
                int(packed.start[piece]),
                int(packed.length[piece]),
            )
            end = start + length + int(packed.goes_on[piece])
            cut = int(packed.cut[piece])
            if packed.cut_at is not None and cut:
                at = int(packed.cut_at[piece])
                parts = [Span(document, start, at - start), Span(document, at + cut, end - at)]
                spans += [span for span in parts if span.length]
            else:
                spans.append(Span(document, start, end - start))
        return spans

    def read(self, epoch_sample: EpochSample, out: NDArray[np.int64]) -> list[Span]:
        """Reads a row, and returns `locate` of it.

        Args:
            epoch_sample: Any row; not only the last drawn.
            out: `[sequence_length + 1]` int64, overwritten; padding behind the last document.
        """
        spans = self.locate(epoch_sample)
        filled = sum(span.length for span in spans)
        self.documents.read(spans, out[:filled])
        out[filled:] = self._padding_id
        return spans

    def starts_in_row(self, epoch_sample: EpochSample) -> list[int]:
        """Places of a row, from 0, at which a document, a piece of one, or the padding begins."""
        _, packed, pieces = self._pieces(epoch_sample)
        return [0, *accumulate(packed.length[pieces.start : pieces.stop].tolist())]

    def seams(self, epoch_sample: EpochSample) -> list[int]:
        """The labels of a row, from 0, that do not follow their input in the source; those of padding too."""
        _, packed, pieces = self._pieces(epoch_sample)
        ends = list(accumulate(packed.length[pieces.start : pieces.stop].tolist()))
        unlabelled = [end - 1 for end, piece in zip(ends, pieces, strict=True) if not packed.goes_on[piece]]
        return [*unlabelled, *range(ends[-1], self.sequence_length)]

    def counts_before(self, place: int) -> CountedRows:
        """What the rows before a place of the reading order hold; exact within a window."""
        epoch, row = divmod(place // self.sequence_length, self.rows_of_pass)
        here = self._counts_in_epoch(epoch, row)
        if epoch == 0:
            return CountedRows(here, here)
        whole = RowCounts(*self._counts.sum(axis=0).tolist())
        return CountedRows(whole, sum_counts([RowCounts(*(epoch * count for count in whole)), here]))

    def state_dict(self) -> dict[str, Any]:
        """Where the reading stands and what the numbers count; JSON-able."""
        return self._identity() | {"epoch": self._epoch, "window": self._window, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a saved place, without reading what lies before it.

        Raises:
            DataError: If the state belongs to other data or another packing, or names no place.
        """
        require_same(self.documents.source, self._identity(), state)
        place = tuple(state.get(name) for name in ("epoch", "window", "position"))
        if not self._is_place(*place):
            raise no_place_error(self.documents.source, *place)
        self._epoch, self._window, self._position = (int(number) for number in place if number is not None)

    take_over = load_state_dict
    """Behind the end of an earlier stage, which read the same rows: a chain that packs otherwise is refused."""

    def _identity(self) -> dict[str, Any]:
        """What the place is counted in; with any of it changed the same numbers mean other rows."""
        return {
            "seed": self._seed,
            "data_id": self.documents.data_id,
            "windows": len(self._windows),
            "sequence_length": self.sequence_length,
            "packing": "best_fit",
            "long_documents": self.long_documents,
            "rows": self.rows_of_pass,
        }

    def _is_place(self, epoch: Any, window: Any, position: Any) -> bool:
        if not are_counts(epoch, window, position):
            return False
        return window < len(self._counts) and bool(position <= self._rows_of_window(epoch, window))

    def _rows_of_window(self, epoch: int, window: int) -> int:
        return int(self._rows_of[self._order(epoch).windows[window]])

    def _first_row(self, epoch: int, window: int) -> int:
        """Rows of an epoch before a window."""
        return int(self._order(epoch).ends[window - 1]) if window else 0

    def _counts_in_epoch(self, epoch: int, num_rows: int) -> RowCounts:
        """Of the first rows of an epoch."""
        if num_rows == 0:
            return NO_ROWS
        order = self._order(epoch)
        window = int(order.ends.searchsorted(num_rows, side="right"))  # those before it are read to their end
        whole = RowCounts(*self._counts[order.windows[:window]].sum(axis=0).tolist())
        begun = num_rows - self._first_row(epoch, window)
        if begun == 0:
            return whole
        packed, rows = self._packed(epoch, int(order.windows[window]))
        return sum_counts([whole, packed.counts_of_rows(rows[:begun])])

    def _pieces(self, epoch_sample: EpochSample) -> tuple[int, PackedWindow, range]:
        """The first document of a row's window, the window, and the numbers of the row's pieces in it."""
        epoch, row = epoch_sample
        order = self._order(epoch)
        window = int(order.ends.searchsorted(row, side="right"))
        number = int(order.windows[window])
        packed, rows = self._packed(epoch, number)
        at = int(rows[row - self._first_row(epoch, window)])
        pieces = range(int(packed.first_piece[at]), int(packed.first_piece[at + 1]))
        block, first, _ = self._windows[number]
        return self.documents.first_of_block(block) + first, packed, pieces

    def _permute_epoch(self, epoch: int) -> _EpochOrder:
        windows = keyed_permutation(len(self._counts), key=f"windows/{self._key}/{epoch}")
        return _EpochOrder(windows, np.cumsum(self._rows_of[windows]))

    def _pack_window(self, epoch: int, number: int) -> _WindowOrder:
        window = self._windows[number]
        lengths = self.documents.lengths_of_block(window.block)[window.first : window.end]
        packed = pack_window(
            lengths,
            sequence_length=self.sequence_length,
            long_documents=self.long_documents,
            thinking=self._thinking.of_window(window) if self._thinking is not None else None,
            order=keyed_permutation(len(lengths), key=f"documents/{self._key}/{epoch}/{number}"),
        )
        assert packed.num_rows == self._rows_of[number], "rows depend on the lengths alone"
        rows = keyed_permutation(packed.num_rows, key=f"rows/{self._key}/{epoch}/{number}")
        return _WindowOrder(packed, rows.astype(np.min_scalar_type(max(packed.num_rows - 1, 0))))


def open_packed_cursor(plan: StagePlan, source: SourcePlan, documents: Documents | ShardedDocuments) -> PackedCursor:
    """The cursor of a source of a stage that packs; its counts come from the store, or are made.

    Args:
        plan: The stage.
        source: One of its sources.
        documents: Of it, as planned.

    Raises:
        DataError: Its index, or its masks where thinking is trimmed, is missing or damaged.
    """
    dataset = read_dataset(source.prefix)
    data, length = plan.data, plan.batch.sequence_length
    policy = policy_for(dataset, data.long_documents)
    counts = count_rows(dataset, sequence_length=length, long_documents=policy, store=Path(data.store), is_kept=False)
    return PackedCursor(
        documents,
        windows=windows_of(dataset, sequence_length=length),
        counts=counts,
        seed=plan.seed,
        sequence_length=length,
        long_documents=policy,
        padding_id=data.eod_id,
        thinking=Thinking(dataset) if policy == "trim-thinking" else None,
    )
