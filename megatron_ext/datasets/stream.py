"""The endless token stream of one source: seeded passes over its documents, one after another.

Each epoch permutes the blocks of documents, then the documents within each block. What is held is
O(blocks) for the epoch and a few expanded blocks, never O(documents): 5e7 documents of 65,536 a
block are 763 blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools.permutation import keyed_permutation
from megatron_ext.datasets.documents import Documents, Span
from megatron_ext.datasets.shards import ShardedDocuments

HELD_BYTES = 160_000_000
"""Of the expanded blocks of all sources that are read together. A block of 65,536 documents and fewer than 2^32
tokens takes 0.4 MB and a few milliseconds to expand again: two blocks each of 200 sources."""

_EPOCHS_HELD = 2  # a sample may cross from one epoch into the next


def blocks_to_hold(
    sources: Sequence[Documents | ShardedDocuments], *, window_tokens: int, held_bytes: int = HELD_BYTES
) -> list[int]:
    """How many expanded blocks each source keeps: what a window of it touches, and fewer where there is no room.

    The sources that would keep most give way first. At least one block of each is kept, whatever the bytes. A
    source that keeps fewer than its window touches expands a block again for most of its samples.

    Args:
        sources: Those that are read together.
        window_tokens: Tokens that are shuffled together.
        held_bytes: Of all blocks together.
    """
    bytes_of = [_block_bytes(documents) for documents in sources]
    wanted = [
        min(len(documents.block_tokens), 1 + -(-window_tokens * len(documents.block_tokens) // documents.num_tokens))
        for documents in sources
    ]
    most = max(wanted)
    while most > 1 and sum(min(most, want) * size for want, size in zip(wanted, bytes_of, strict=True)) > held_bytes:
        most -= 1
    return [min(most, want) for want in wanted]


def _block_bytes(documents: Documents | ShardedDocuments) -> int:
    """Bytes of the largest expanded block of a source; see `_BlockOrder`."""
    size = min(documents.block_documents, documents.num_documents)
    types = np.min_scalar_type(size - 1), np.min_scalar_type(int(documents.block_tokens.max()))
    return size * sum(kind.itemsize for kind in types)


class _EpochOrder(NamedTuple):
    blocks: NDArray[np.int64]  # [blocks], in reading order
    ends: NDArray[np.int64]  # [blocks], tokens of the epoch up to the end of each


class _BlockOrder(NamedTuple):
    documents: NDArray[Any]  # [documents of the block], counted from its first, in reading order
    ends: NDArray[Any]  # [documents of the block], tokens of the block up to the end of each


class TokenStream:
    """Tokens of one source in reading order; position p lies in epoch p // T at offset p % T.

    T is the number of tokens of the source. The order depends on the seed and the content only.
    """

    def __init__(self, documents: Documents | ShardedDocuments, *, seed: int, blocks_held: int) -> None:
        """Takes an order; reads nothing yet.

        Args:
            documents: The source.
            seed: Seed of the order.
            blocks_held: Expanded blocks that are kept (`blocks_to_hold`).
        """
        self.documents = documents
        self._key = f"{seed}/{documents.data_id}"
        # A cache of this object's own: one shared by all would be emptied by the other sources.
        self._epoch = lru_cache(maxsize=_EPOCHS_HELD)(self._permute_epoch)
        self._block = lru_cache(maxsize=blocks_held)(self._permute_block)

    def spans(self, position: int, num_tokens: int) -> list[Span]:
        """Where the tokens from `position` on lie, as runs within documents, in reading order.

        Args:
            position: Tokens from the start of epoch 0; may lie in any epoch.
            num_tokens: Length; may cross into later epochs.
        """
        spans: list[Span] = []
        end = position + num_tokens
        while position < end:
            epoch, offset = divmod(position, self.documents.num_tokens)
            position += self._append_spans_of_block(spans, epoch, offset, end - position)
        return spans

    def starts(self, position: int, num_tokens: int) -> NDArray[np.int64]:
        """Positions among the tokens from `position` on at which documents begin, rising; empty ones never do."""
        found, end = [np.empty(0, dtype=np.int64)], position + num_tokens
        while position < end:
            epoch, place = self.block_at(position)
            begins = self.starts_of_block(epoch, place)
            found.append(begins[(begins >= position) & (begins < end)])
            position = epoch * self.documents.num_tokens + int(self._epoch(epoch).ends[place])
        return np.concatenate(found)

    def starts_of_block(self, epoch: int, place: int) -> NDArray[np.int64]:
        """Positions at which documents of an epoch's block begin, rising; `place` is the block's in reading order."""
        order = self._epoch(epoch)
        block = int(order.blocks[place])
        ends = self._block(epoch, block).ends.astype(np.int64)
        begins = np.concatenate(([0], ends[:-1]))
        before = int(order.ends[place]) - int(self.documents.block_tokens[block])
        return epoch * self.documents.num_tokens + before + begins[begins < ends]

    def block_at(self, position: int) -> tuple[int, int]:
        """The epoch of a position, and the place in its order of the block that holds it."""
        epoch, offset = divmod(position, self.documents.num_tokens)
        return epoch, int(self._epoch(epoch).ends.searchsorted(offset, side="right"))

    def blocks(self, epoch: int) -> NDArray[np.int64]:
        """The blocks in an epoch's reading order, `[blocks]`."""
        return self._epoch(epoch).blocks

    def _append_spans_of_block(self, spans: list[Span], epoch: int, offset: int, num_tokens: int) -> int:
        """Appends at most `num_tokens` from the block at `offset` of an epoch; returns how many."""
        order = self._epoch(epoch)
        place = int(order.ends.searchsorted(offset, side="right"))
        block = int(order.blocks[place])
        block_start = int(order.ends[place]) - int(self.documents.block_tokens[block])
        begin = offset - block_start
        stop = min(begin + num_tokens, int(self.documents.block_tokens[block]))
        documents, ends = self._block(epoch, block)
        # Scalars of the array's own type: anything wider would convert the whole array at each search.
        first = int(ends.searchsorted(ends.dtype.type(begin), side="right"))
        last = int(ends.searchsorted(ends.dtype.type(stop), side="left"))
        first_document = self.documents.first_of_block(block)
        start = int(ends[first - 1]) if first else 0
        for document, document_end in zip(
            documents[first : last + 1].tolist(), ends[first : last + 1].tolist(), strict=True
        ):
            if document_end > start:  # an empty document has nothing to read
                low = max(begin, start)
                spans.append(Span(first_document + document, low - start, min(stop, document_end) - low))
            start = document_end
        return stop - begin

    def _permute_epoch(self, epoch: int) -> _EpochOrder:
        block_tokens = self.documents.block_tokens
        blocks = keyed_permutation(len(block_tokens), key=f"blocks/{self._key}/{epoch}")
        return _EpochOrder(blocks, np.cumsum(block_tokens[blocks]))

    def _permute_block(self, epoch: int, block: int) -> _BlockOrder:
        lengths = self.documents.lengths_of_block(block)
        order = keyed_permutation(len(lengths), key=f"documents/{self._key}/{epoch}/{block}")
        ends = np.cumsum(lengths[order])
        # The narrowest types that hold the numbers: hundreds of sources each keep some blocks.
        return _BlockOrder(
            order.astype(np.min_scalar_type(len(order) - 1)), ends.astype(np.min_scalar_type(int(ends[-1])))
        )
