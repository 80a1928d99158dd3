"""The documents of one tokenised source, read where they lie on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset
from numpy.typing import NDArray

from data_tools.errors import DataError
from data_tools.index_header import HEADER_BYTES
from data_tools.manifest import check_files, manifest_path, read_manifest
from megatron_ext.datasets.open_files import OpenFiles


class Span(NamedTuple):
    """A run of tokens within one document."""

    document: int  # place in the file, from 0
    start: int  # tokens into the document
    length: int  # tokens


class Documents:
    """One `.bin/.idx` pair; its index is mapped through Megatron-Core's `IndexedDataset` where it is looked into.

    Memory is that of the manifest's token counts, one number a block of documents; nothing here grows with
    documents or samples. No mapping and no file is held open for good: a blend may have more pairs than the
    process may have open files. Tokens are read, not mapped: rows lie at random, and around each
    page fault the kernel would read and map a hundred kilobytes that nobody wants. A file that was
    shortened meanwhile is an error, where a mapping would end the process with SIGBUS.

    Attributes:
        source: Name of the source, for messages.
        data_id: Identity of the content.
        num_documents: Documents in the pair.
        num_tokens: Tokens in the pair.
        block_documents: Documents of one block; the last block may be shorter.
        block_tokens: Tokens of each block, `[blocks]` int64.
    """

    def __init__(self, prefix: str, *, source: str, data_id: str, files: OpenFiles | None = None) -> None:
        """Opens the pair and checks that it is the one that was planned.

        Args:
            prefix: PREFIX of PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.
            source: Name of the source.
            data_id: `Manifest.data_id` as the plan recorded it.
            files: Opens them; one for all sources that are read together. None takes one of its own.

        Raises:
            DataError: If a file is missing, of another size than its manifest says, of other
                content than planned, or empty.
        """
        manifest = read_manifest(prefix)
        check_files(prefix, manifest)
        where = manifest_path(prefix)
        if manifest.data_id != data_id:
            raise DataError(
                f'{where}: data_id: {manifest.data_id} of source "{source}" is not the planned {data_id}; '
                "the files were replaced since the plan was made. Restore them, or start a new stage on the new data."
            )
        num_blocks = -(-manifest.documents // manifest.block_documents)
        if len(manifest.tokens_per_block) != num_blocks:
            raise DataError(
                f"{where}: tokens_per_block: has {len(manifest.tokens_per_block)} entries, {manifest.documents} "
                f"documents in blocks of {manifest.block_documents} make {num_blocks}; tokenize again with --overwrite"
            )
        if manifest.tokens == 0:
            raise DataError(f'{where}: tokens: 0; source "{source}" has nothing to read. Take it out of data.blend.')
        self.source = source
        self.data_id = data_id
        self.num_documents = manifest.documents
        self.num_tokens = manifest.tokens
        self.block_documents = manifest.block_documents
        self.block_tokens = np.array(manifest.tokens_per_block, dtype=np.int64)
        self._prefix = prefix
        self._files = OpenFiles() if files is None else files
        index = self._index()
        self._dtype, self._item_bytes = index.dtype, int(index.dtype_size)
        self._pointers_at = HEADER_BYTES + 4 * index.sequence_count  # of `.idx`; see data_tools/indexed.py
        self._indices_at = self._pointers_at + 8 * index.sequence_count
        self._paths = f"{prefix}.bin", f"{prefix}.idx"
        self._descriptors()  # from here on they are the files that were checked, or an error

    def _index(self) -> Any:
        """Core's index. It is unmapped with the last reference to it, whoever still holds a view of its arrays."""
        try:
            return IndexedDataset(self._prefix, mmap=False).index  # mmap=False is for the tokens
        # Core's only words on an index whose last document is not its last sequence, or that is too short.
        except (AssertionError, ValueError):
            raise DataError(
                f"{self._prefix}.idx: documents and sequences disagree; damaged. Tokenize again with --overwrite."
            ) from None

    def first_of_block(self, block: int) -> int:
        """The first document of a block."""
        return block * self.block_documents

    def lengths_of_block(self, block: int) -> NDArray[np.int64]:
        """Tokens of each document of a block, in file order, `[documents of the block]`.

        Raises:
            DataError: If they do not sum to what the manifest says.
        """
        first = block * self.block_documents
        index = self._index()
        # A document may hold several sequences: Megatron's own tools can split it into sentences.
        bounds = index.document_indices[first : first + self.block_documents + 1]
        lengths = index.sequence_lengths[int(bounds[0]) : int(bounds[-1])]
        ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        if int(ends[-1]) != int(self.block_tokens[block]):
            raise DataError(
                f"{self._prefix}.idx: block {block} (documents from {first}) holds {int(ends[-1]):,} tokens, "
                f"its manifest says {int(self.block_tokens[block]):,}; the file was changed. "
                "Copy it again, or tokenize with --overwrite."
            )
        return np.diff(ends[bounds - bounds[0]])

    def read(self, spans: Iterable[Span], out: NDArray[np.int64]) -> None:
        """Copies spans, one after another, into `out`.

        Args:
            spans: None of them empty; together exactly as long as `out`.
            out: `[tokens]` int64, overwritten.
        """
        filled = 0
        bin_fd, idx_fd = self._descriptors()
        for document, start, length in spans:
            first = self._start_of(document, idx_fd)
            self._read_tokens(first + start * self._item_bytes, out[filled : filled + length], bin_fd)
            filled += length
        assert filled == len(out), f"spans hold {filled} tokens, {len(out)} were asked"

    def _descriptors(self) -> tuple[int, int]:
        """Those of `.bin` and `.idx`, until other files are asked for."""
        bin_file, idx_file = self._paths
        return self._files.descriptor(bin_file), self._files.descriptor(idx_file)

    def _start_of(self, document: int, idx_fd: int) -> int:
        """Byte of `.bin` where a document begins."""
        # Read, too: a lookup in the mapping would map whole folios of the page cache, up to 2 MB, for 8 bytes.
        sequence = int.from_bytes(self._bytes_of(".idx", 8, self._indices_at + 8 * document, idx_fd), "little")
        return int.from_bytes(self._bytes_of(".idx", 8, self._pointers_at + 8 * sequence, idx_fd), "little")

    def read_in_file_order(self, position: int, out: NDArray[np.int64]) -> None:
        """Copies the tokens from `position` of the file on into `out`, whatever documents they belong to.

        Args:
            position: Tokens from the start of the file.
            out: `[tokens]` int64, overwritten.
        """
        self._read_tokens(position * self._item_bytes, out, self._descriptors()[0])

    def _read_tokens(self, offset: int, out: NDArray[np.int64], bin_fd: int) -> None:
        """Copies the tokens from byte `offset` of `.bin` on into `out`."""
        raw = self._bytes_of(".bin", len(out) * self._item_bytes, offset, bin_fd)
        out[:] = np.frombuffer(raw, self._dtype)

    def _bytes_of(self, suffix: str, num_bytes: int, offset: int, descriptor: int) -> bytes:
        """Bytes of one of the two files; fewer would be other tokens."""
        raw = os.pread(descriptor, num_bytes, offset)
        if len(raw) != num_bytes:
            raise DataError(
                f'{self._prefix}{suffix}: {len(raw):,} of {num_bytes:,} bytes at {offset:,} of source "{self.source}"; '
                "the file was shortened while it was read. Copy it again, and resume from the last checkpoint."
            )
        return raw

    def starts_in_file_order(self, position: int, num_tokens: int) -> list[int]:
        """Where documents begin among the tokens from `position` of the file on, counted from there."""
        index = self._index()
        first, last = (self._document_at(place, index) for place in (position, position + num_tokens - 1))
        sequences = index.document_indices[first : last + 1]
        starts = np.unique(index.sequence_pointers[sequences]) // self._item_bytes - position
        return [int(start) for start in starts if start >= 0]

    def document_at(self, position: int) -> int:
        """The document that holds the token at `position` of the file."""
        return self._document_at(position, self._index())

    def _document_at(self, position: int, index: Any) -> int:
        sequence = int(np.searchsorted(index.sequence_pointers, position * self._item_bytes, side="right")) - 1
        return int(np.searchsorted(index.document_indices, sequence, side="right")) - 1


def unknown_id_error(*, source: str, document: int, token_id: int, vocab_size: int) -> DataError:
    """A token that the model has no embedding for."""
    return DataError(
        f'source "{source}", document {document}: token id {token_id} is outside model.vocab_size {vocab_size} '
        f"(ids 0 to {vocab_size - 1}). Raise model.vocab_size, or tokenize the source with the recipe's tokenizer."
    )


def first_unknown_id(row: NDArray[np.int64], *, vocab_size: int) -> int | None:
    """Place of the first id outside the vocabulary in a row, `[tokens]`; None if all are inside."""
    # As unsigned, a negative id (damaged int32 data) is larger than any vocabulary: one pass finds both.
    ids = row.view(np.uint64)
    if int(ids.max()) < vocab_size:
        return None
    return int(np.argmax(ids >= vocab_size))
