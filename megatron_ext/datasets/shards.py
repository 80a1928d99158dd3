"""A source whose dataset is a folder of shards, read as one: its documents are numbered through, shard after shard.

Blocks do not reach over shards: the last block of each may be shorter. Nothing else differs from one pair.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset import Shard, read_dataset
from data_tools.errors import DataError
from megatron_ext.datasets.documents import Documents, Span
from megatron_ext.datasets.open_files import OpenFiles


def open_documents(
    prefix: str, *, source: str, data_id: str, files: OpenFiles | None = None
) -> Documents | ShardedDocuments:
    """Opens a source's dataset, one pair or shards, and checks that it is the one that was planned.

    Args:
        prefix: PREFIX of the dataset.
        source: Name of the source.
        data_id: Identity of the content, as the plan recorded it.
        files: Opens them; one for all sources that are read together. None takes one of its own.

    Raises:
        DataError: If a file is missing, of another size than its manifest says, of other content than
            planned, or the whole is empty.
    """
    dataset = read_dataset(prefix)
    if len(dataset.shards) == 1 and dataset.shards[0].prefix == prefix:
        return Documents(prefix, source=source, data_id=data_id, files=files)
    if dataset.data_id != data_id:
        raise DataError(
            f'{prefix}: data_id: {dataset.data_id} of the {len(dataset.shards)} shards of source "{source}" is not the '
            f"planned {data_id}; shards were replaced, added or removed since the plan was made. Restore them, or "
            "start a new stage on the new data."
        )
    if dataset.tokens == 0:
        raise DataError(f'{prefix}: tokens: 0; source "{source}" has nothing to read. Take it out of data.blend.')
    return ShardedDocuments(dataset.shards, source=source, data_id=data_id, files=files or OpenFiles())


class ShardedDocuments:
    """The documents of several pairs; reads and names them like `Documents`.

    Attributes:
        source: Name of the source, for messages.
        data_id: Identity of the whole content.
        num_documents: Documents in all shards.
        num_tokens: Tokens in all shards.
        block_documents: Documents of one block; the last block of a shard may be shorter.
        block_tokens: Tokens of each block, `[blocks]` int64.
    """

    def __init__(self, shards: Sequence[Shard], *, source: str, data_id: str, files: OpenFiles) -> None:
        """Opens the shards.

        Args:
            shards: In order; some may be empty, not all.
            source: Name of the source.
            data_id: Identity of the whole.
            files: Opens them.

        Raises:
            DataError: If one is damaged.
        """
        self.source, self.data_id, self.block_documents = source, data_id, shards[0].manifest.block_documents
        self.num_documents = sum(shard.manifest.documents for shard in shards)
        self.num_tokens = sum(shard.manifest.tokens for shard in shards)
        documents = accumulate((shard.manifest.documents for shard in shards), initial=0)
        filled = [(shard, first) for shard, first in zip(shards, documents, strict=False) if shard.manifest.tokens]
        self._pairs = [
            Documents(shard.prefix, source=source, data_id=shard.manifest.data_id, files=files) for shard, _ in filled
        ]
        self.block_tokens = np.concatenate([pair.block_tokens for pair in self._pairs])
        # The first document, token and block of each pair, in the whole.
        self._documents = [first for _, first in filled]
        self._tokens = list(accumulate((pair.num_tokens for pair in self._pairs), initial=0))[:-1]
        self._blocks = list(accumulate((len(pair.block_tokens) for pair in self._pairs), initial=0))[:-1]

    def first_of_block(self, block: int) -> int:
        """The first document of a block."""
        at = bisect_right(self._blocks, block) - 1
        return self._documents[at] + self._pairs[at].first_of_block(block - self._blocks[at])

    def lengths_of_block(self, block: int) -> NDArray[np.int64]:
        """Tokens of each document of a block, in order; see `Documents`."""
        at = bisect_right(self._blocks, block) - 1
        return self._pairs[at].lengths_of_block(block - self._blocks[at])

    def read(self, spans: Iterable[Span], out: NDArray[np.int64]) -> None:
        """Copies spans, one after another, into `out`; see `Documents`."""
        filled = 0
        for document, start, length in spans:
            at = bisect_right(self._documents, document) - 1
            span = Span(document - self._documents[at], start, length)
            self._pairs[at].read([span], out[filled : filled + length])
            filled += length
        assert filled == len(out), f"spans hold {filled} tokens, {len(out)} were asked"

    def read_in_file_order(self, position: int, out: NDArray[np.int64]) -> None:
        """Copies the tokens from `position` of the whole on into `out`; see `Documents`."""
        filled = 0
        for at, begin, length in self._runs(position, len(out)):
            self._pairs[at].read_in_file_order(begin, out[filled : filled + length])
            filled += length

    def starts_in_file_order(self, position: int, num_tokens: int) -> list[int]:
        """Where documents begin among the tokens from `position` of the whole on, counted from there."""
        starts, before = [], 0
        for at, begin, length in self._runs(position, num_tokens):
            starts += [before + start for start in self._pairs[at].starts_in_file_order(begin, length)]
            before += length
        return starts

    def document_at(self, position: int) -> int:
        """The document that holds the token at `position` of the whole."""
        ((at, begin, _),) = self._runs(position, 1)
        return self._documents[at] + self._pairs[at].document_at(begin)

    def _runs(self, position: int, num_tokens: int) -> Iterator[tuple[int, int, int]]:
        """Pair, place in it and length of each run of tokens from `position` of the whole on."""
        end = position + num_tokens
        while position < end:
            at = bisect_right(self._tokens, position) - 1
            begin = position - self._tokens[at]
            length = min(end - position, self._pairs[at].num_tokens - begin)
            assert length > 0, f"token {position} is behind the last of {self.num_tokens}"
            yield at, begin, length
            position += length
