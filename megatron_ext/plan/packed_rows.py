"""Rows of whole documents: which documents share a row of `sequence_length` positions, and how many rows there are.

A window, a run of documents of a block that make some 16,384 pieces, is packed by itself: best fit, longest first.
How many rows that gives, and of which lengths, depends on the lengths alone. So a window has as many rows in every
epoch and for every seed, whichever of its equally long documents takes which place: what is held of a source is a
line of counts a window.

These counts are kept in the store of the run root (`prepared.py`), kind `rows`: `windows.npy`, int64
`[windows, fields of RowCounts]`, numpy's format 1.0. Worked size: 5e7 documents, none longer than a row, are some
3,060 to 6,110 windows of 80 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset import Shard, StoredDataset
from data_tools.errors import DataError
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import LossMasks, read_masks
from data_tools.packing import best_fit_decreasing, fit_pieces
from data_tools.progress import Progress, shown
from megatron_ext.plan.prepared import prepare, prepared_folder, read_prepared

LongDocuments = Literal["split", "truncate", "trim-thinking", "drop"]
"""What becomes of a document longer than a row; see `data_tools.packing`."""

DOCUMENT_ROWS_VERSION = 1
"""Part of the store's key; raised when the same lengths would give other rows, with SEMANTICS_VERSION."""

WINDOW_PIECES = 16_384
"""Documents and parts of long ones that are packed together, roughly. With 65,536 rows would be 0.1 % fuller at 32k
tokens, and 200 sources would take 350 MB and 7 s of CPU to start; with 4,096 half a percent of the positions is
padding there. Part of the order, like the above."""

Ints = NDArray[Any]


def policy_for(dataset: StoredDataset, long_documents: LongDocuments) -> LongDocuments:
    """What becomes of a dataset's long documents: with `trim-thinking` `split`, where no thinking is recorded."""
    return "split" if long_documents == "trim-thinking" and dataset.chat is None else long_documents


class RowCounts(NamedTuple):
    """What some rows hold, and what was done to the documents of their windows."""

    rows: int
    documents: int  # that begin in them
    pieces: int  # whole documents, and parts of long ones
    tokens: int  # the rest of the rows is padding
    unlabelled: int  # tokens whose next one lies in no row or in another: the last ones of pieces
    split: int  # long documents, of which no token is missing
    cut: int  # long documents that were truncated, or lost the tail of their thinking
    cut_tokens: int
    dropped: int  # documents left out, counted with the last row of their window
    dropped_tokens: int

    def minus(self, other: RowCounts) -> RowCounts:
        """What these rows have beyond others, which they contain."""
        return RowCounts(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


NO_ROWS = RowCounts(*[0] * len(RowCounts._fields))


class Window(NamedTuple):
    """Documents first..end of a block, counted from its first."""

    block: int
    first: int
    end: int


def windows_of(dataset: StoredDataset, *, sequence_length: int, window_pieces: int = WINDOW_PIECES) -> list[Window]:
    """The windows of a dataset, with its blocks as `Documents` counts them; tests make them small.

    A block's windows have equally many documents: fewer where documents are longer than rows, for what a reader
    holds of a window grows with its pieces.
    """
    windows = []
    block = 0
    for shard, blocks in _blocks_by_shard(dataset):
        for (first, end), tokens in zip(blocks, shard.manifest.tokens_per_block, strict=True):
            size = end - first
            step = max(1, window_pieces * size // (size + tokens // sequence_length))
            windows += [Window(block, at, min(at + step, size)) for at in range(0, size, step)]
            block += 1
    return windows


def _blocks_by_shard(dataset: StoredDataset) -> Iterator[tuple[Shard, list[tuple[int, int]]]]:
    """Each shard that holds tokens, and the documents first..end of its blocks."""
    for shard in dataset.shards:
        documents, size = shard.manifest.documents, shard.manifest.block_documents
        if shard.manifest.tokens:
            yield shard, [(first, min(first + size, documents)) for first in range(0, documents, size)]


@dataclass(frozen=True)
class PackedWindow:
    """The rows of one window, in no order of their own.

    Attributes:
        first_piece: `[rows + 1]` number of each row's first piece.
        document: `[pieces]` counted from the window's first.
        start: `[pieces]` first token.
        length: `[pieces]` tokens, without those cut out.
        cut: `[pieces]` tokens missing of the document, else 0.
        cut_at: `[pieces]` tokens of the piece before those cut out; None where what is cut is the document's end.
        goes_on: `[pieces]` whether the document's next token is known, in another piece.
        dropped: Documents left out.
        dropped_tokens: Their tokens.
    """

    first_piece: Ints
    document: Ints
    start: Ints
    length: Ints
    cut: Ints
    cut_at: Ints | None
    goes_on: NDArray[np.bool_]
    dropped: int
    dropped_tokens: int

    @property
    def num_rows(self) -> int:
        """Rows of the window."""
        return len(self.first_piece) - 1

    def counts(self) -> RowCounts:
        """Of all rows, with what was left out."""
        return self.counts_of(np.ones(len(self.document), np.bool_), rows=self.num_rows)._replace(
            dropped=self.dropped, dropped_tokens=self.dropped_tokens
        )

    def counts_of_rows(self, rows: Ints) -> RowCounts:
        """Of some rows, by their numbers; documents that were left out belong to none."""
        is_read = np.zeros(self.num_rows, np.bool_)
        is_read[rows] = True
        return self.counts_of(np.repeat(is_read, np.diff(self.first_piece)), rows=len(rows))

    def counts_of(self, pieces: NDArray[np.bool_], *, rows: int) -> RowCounts:
        """Of rows that hold these pieces."""
        begins, goes_on, cut = ((column[pieces]) for column in (self.start == 0, self.goes_on, self.cut))
        return RowCounts(
            rows=rows,
            documents=int(np.count_nonzero(begins)),
            pieces=int(np.count_nonzero(pieces)),
            tokens=int(self.length[pieces].sum(dtype=np.int64)),
            unlabelled=int(np.count_nonzero(~goes_on)),
            split=int(np.count_nonzero(begins & goes_on)),
            cut=int(np.count_nonzero(cut)),
            cut_tokens=int(cut.sum(dtype=np.int64)),
            dropped=0,
            dropped_tokens=0,
        )


def pack_window(
    lengths: Ints,
    *,
    sequence_length: int,
    long_documents: LongDocuments,
    thinking: Ints | None = None,
    order: Ints | None = None,
) -> PackedWindow:
    """Packs the documents of one window.

    >>> window = pack_window(np.array([3, 9, 1, 0]), sequence_length=4, long_documents="split")
    >>> window.num_rows, window.document.tolist(), window.start.tolist(), window.length.tolist()
    (4, [1, 1, 0, 1, 2], [0, 4, 0, 8, 0], [4, 4, 3, 1, 1])

    Args:
        lengths: `[documents]` tokens of each; those without a token are in no row.
        sequence_length: Positions of a row.
        long_documents: What becomes of longer documents.
        thinking: `[documents, 2]` range of thinking that may be trimmed; needed for `trim-thinking`.
        order: `[documents]` the order in which equally long documents take their places; None: theirs.
    """
    order = np.arange(len(lengths)) if order is None else order
    order = order[lengths[order] > 0]
    whole = lengths[order].astype(np.int64)
    pieces, outcome = fit_pieces(
        whole, sequence_length, long_documents, thinking[order] if thinking is not None else None
    )
    rows = best_fit_decreasing(pieces.lengths, sequence_length)
    pieces = pieces.take(np.argsort(rows, kind="stable"))
    length_of_document = whole[pieces.conversation]
    end = pieces.start + pieces.lengths
    is_split = long_documents == "split"
    is_trimmed = long_documents == "trim-thinking"
    return PackedWindow(
        first_piece=_narrow(np.concatenate(([0], np.cumsum(np.bincount(rows))))),
        document=_narrow(order[pieces.conversation]),
        start=_narrow(pieces.start),
        length=_narrow(pieces.lengths),
        cut=_narrow(np.zeros_like(end) if is_split else length_of_document - end),
        cut_at=_narrow(pieces.skip_start) if is_trimmed else None,
        goes_on=(end < length_of_document) & is_split,
        dropped=outcome["dropped"].conversations,
        dropped_tokens=outcome["dropped"].tokens,
    )


def _narrow(numbers: Ints) -> Ints:
    """The same in the narrowest type: hundreds of sources each keep a window."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


class Thinking:
    """Where the documents of a dataset think, by blocks as `Documents` counts them; the files are mapped."""

    def __init__(self, dataset: StoredDataset) -> None:
        """Opens the masks of all shards.

        Raises:
            DataError: A mask is missing or damaged.
        """
        self._blocks: list[tuple[LossMasks, int, int]] = []
        for shard, blocks in _blocks_by_shard(dataset):
            masks = read_masks(shard.prefix)
            self._blocks += [(masks, first, end) for first, end in blocks]

    def of_window(self, window: Window) -> Ints:
        """`[documents of the window, 2]` range of each one's longest trace of thinking; 0 0 for none."""
        masks, first, end = self._blocks[window.block]
        return masks.thinking[first:end][window.first : window.end]


def count_rows(
    dataset: StoredDataset,
    *,
    sequence_length: int,
    long_documents: LongDocuments,
    store: Path,
    is_kept: bool,
    window_pieces: int = WINDOW_PIECES,
) -> list[RowCounts]:
    """The rows of every window of a dataset: from the store, or counted now; long counting shows its progress.

    Args:
        dataset: What is packed.
        sequence_length: Positions of a row.
        long_documents: What becomes of longer documents, as `policy_for` says.
        store: The run root.
        is_kept: Whether counts that are not there are put into the store.
        window_pieces: As in `windows_of`.

    Raises:
        DataError: The index is not the one of its manifest, or the store is damaged and nothing is to be kept.
        OSError: The store cannot be written.
    """
    key = {
        "rows_version": DOCUMENT_ROWS_VERSION,
        "data_id": dataset.data_id,
        "block_documents": dataset.shards[0].manifest.block_documents,
        "window_pieces": window_pieces,
        "sequence_length": sequence_length,
        "long_documents": long_documents,
    }

    def count() -> NDArray[np.int64]:
        thinking = Thinking(dataset) if long_documents == "trim-thinking" else None
        windows = windows_of(dataset, sequence_length=sequence_length, window_pieces=window_pieces)
        label = f"packing {dataset.documents:,} documents of {dataset.prefix}"
        label += "" if is_kept else " (megatron-ext prepare does it ahead)"
        with shown(label, sum(shard.manifest.idx_bytes for shard in dataset.shards)) as progress:
            counts = [
                pack_window(
                    lengths[window.first : window.end],
                    sequence_length=sequence_length,
                    long_documents=long_documents,
                    thinking=thinking.of_window(window) if thinking is not None else None,
                ).counts()
                for lengths, (_, inside) in zip(
                    _lengths_of_blocks(dataset, progress),
                    groupby(windows, key=lambda window: window.block),
                    strict=True,
                )
                for window in inside
            ]
        return np.array(counts, dtype="<i8").reshape(-1, len(RowCounts._fields))

    folder = prepared_folder(store, "rows", key)
    if is_kept:
        prepare(store, "rows", key, lambda folder: np.save(folder / "windows.npy", count()))
    is_there = is_kept or read_prepared(folder, key)
    counts = np.load(folder / "windows.npy", allow_pickle=False) if is_there else count()
    return [RowCounts(*window) for window in counts.tolist()]


def _lengths_of_blocks(dataset: StoredDataset, progress: Progress) -> Iterator[Ints]:
    """Tokens of each document, a block at a time."""
    for shard, blocks in _blocks_by_shard(dataset):
        manifest, reader = shard.manifest, IndexedReader(shard.prefix)
        for number, ((first, end), tokens) in enumerate(zip(blocks, manifest.tokens_per_block, strict=True)):
            lengths = reader.lengths_between(first, end)
            if int(lengths.sum()) != tokens:
                raise DataError(
                    f"{shard.prefix}.idx: block {number} holds {int(lengths.sum()):,} tokens, its manifest says "
                    f"{tokens:,}; the file was changed. Copy it again, or tokenize with --overwrite"
                )
            yield lengths
            progress.advance(manifest.idx_bytes * len(lengths) // max(1, manifest.documents))


def sum_counts(counts: list[RowCounts]) -> RowCounts:
    """Of all of them together."""
    return RowCounts(*(sum(column) for column in zip(NO_ROWS, *counts, strict=True)))
