"""Megatron's `.bin/.idx` pair, written and read with numpy.

`PREFIX.bin` is the token ids of all documents, one after the other, little-endian, nothing between
them: uint16 where the vocabulary has fewer than 65,500 ids, else int32.

`PREFIX.idx`, with S sequences and D documents (here a document is one sequence, or none if it is empty):

| offset      | bytes   | field |
|-------------|---------|-------|
| 0           | 34      | header, see `index_header.py`; it holds S and D + 1 |
| 34          | 4 S     | int32: tokens of each sequence |
| 34 + 4 S    | 8 S     | int64: byte offset of each sequence in `.bin` |
| 34 + 12 S   | 8 (D+1) | int64: number of the first sequence of each document, then S |

Worked size: documents of 5, 1 and 7 tokens in uint16 make a `.bin` of 26 bytes and an `.idx` of
34 + 12 + 24 + 32 = 102 bytes, with lengths 5 1 7, offsets 0 10 12 and documents 0 1 2 3.

Source: megatron.core.datasets.indexed_dataset (0.19), `IndexedDatasetBuilder`, `DType.optimal_dtype`;
the bytes are compared with the builder's in the tests.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.atomic_files import beside, close_unwritten
from data_tools.errors import DataError
from data_tools.index_header import HEADER_BYTES, ITEM_BYTES, DTypeName, IndexHeader, read_index_header

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int32]

_UINT16_BELOW = 65_500  # Megatron's bound, a little under 2^16
_LONGEST_DOCUMENT = 2**31 - 1
_SLICE = 1 << 20
"""Documents of which the index is written at once; all their lengths stay in memory, 4 bytes each."""


def dtype_for(vocab_size: int) -> DTypeName:
    """The type that Megatron gives to the ids of a vocabulary.

    >>> dtype_for(65_499), dtype_for(65_500)
    ('uint16', 'int32')
    """
    return "uint16" if vocab_size < _UINT16_BELOW else "int32"


@dataclass(frozen=True)
class WrittenPair:
    """What a finished writer put on the disk.

    Attributes:
        lengths: [documents] tokens of each document.
        max_token_id: Largest id written; 0 when nothing was.
        bin_bytes: Size of the `.bin` file.
        idx_bytes: Size of the `.idx` file.
        bin_sha256: Hash of the `.bin` file, hex.
        idx_sha256: Hash of the `.idx` file, hex.
    """

    lengths: Lengths
    max_token_id: int
    bin_bytes: int
    idx_bytes: int
    bin_sha256: str
    idx_sha256: str


class IndexedWriter:
    """Writes documents to a `.bin` file, a batch at a time, and at the end its `.idx` file."""

    def __init__(self, bin_path: Path, *, dtype: DTypeName) -> None:
        self._dtype = dtype
        self._file = bin_path.open("wb")
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._lengths: list[Lengths] = []
        self._max_token_id = 0

    def add_documents(self, ids: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> None:
        """Appends whole documents.

        Args:
            ids: [tokens] the ids of all of them, in order.
            lengths: [documents] tokens of each; sums to `tokens`.

        Raises:
            DataError: If an id does not fit the type on disk or a document the index.
        """
        assert int(lengths.sum()) == ids.size, "lengths must sum to the number of ids"
        longest = int(lengths.max(initial=0))
        if longest > _LONGEST_DOCUMENT:
            raise DataError(f"a document has {longest:,} tokens, the index holds {_LONGEST_DOCUMENT:,}; split it")
        self._lengths.append(lengths.astype("<i4"))
        if ids.size == 0:
            return
        largest = int(ids.max())
        if largest > np.iinfo(self._dtype).max or int(ids.min()) < 0:
            raise DataError(f"token ids {int(ids.min())} to {largest} do not fit {self._dtype}")
        raw = memoryview(np.ascontiguousarray(ids, dtype=f"<{np.dtype(self._dtype).str[1:]}")).cast("B")
        self._file.write(raw)
        self._hash.update(raw)
        self._bytes += raw.nbytes
        self._max_token_id = max(self._max_token_id, largest)

    def finish(self, idx_path: Path) -> WrittenPair:
        """Closes the `.bin` file, writes the `.idx` file; both are on the disk when it returns."""
        _sync_and_close(self._file)
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, "<i4")
        idx_bytes, idx_sha256 = write_index(idx_path, lengths, dtype=self._dtype)
        return WrittenPair(
            lengths=lengths,
            max_token_id=self._max_token_id,
            bin_bytes=self._bytes,
            idx_bytes=idx_bytes,
            bin_sha256=self._hash.hexdigest(),
            idx_sha256=idx_sha256,
        )

    def discard(self) -> None:
        """Closes the `.bin` file without an index; for a job that failed."""
        close_unwritten(self._file)


def _sync_and_close(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def write_index(path: Path, lengths: Lengths, *, dtype: DTypeName) -> tuple[int, str]:
    """Writes the `.idx` file of documents of `lengths` tokens; it is on the disk when this returns.

    Args:
        path: The file.
        lengths: [documents] tokens of each; a document without a token has no sequence.
        dtype: Type of one token in `.bin`.

    Returns:
        Its size in bytes and its sha256, hex.
    """
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for piece in _index_pieces(lengths, dtype=dtype):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        _sync_and_close(file)
    return size, digest.hexdigest()


def _index_pieces(lengths: Lengths, *, dtype: DTypeName) -> Iterator[bytes]:
    """The content of an `.idx` file, a few megabytes at a time."""
    is_sequence = lengths > 0
    sequences = lengths[is_sequence].astype("<i4")
    yield IndexHeader(dtype=dtype, sequences=len(sequences), documents=len(lengths)).to_bytes()
    yield from (part.tobytes() for part in _slices(sequences))
    yield from _sums(sequences, item_bytes=ITEM_BYTES[dtype])
    yield from _sums(is_sequence, item_bytes=1)
    yield np.array([len(sequences)], "<i8").tobytes()


def _sums(counts: npt.NDArray[Any], *, item_bytes: int) -> Iterator[bytes]:
    """For each entry the sum of those before it, times `item_bytes`."""
    before = 0
    for part in _slices(counts):
        ends = before + np.cumsum(part, dtype="<i8")
        yield ((ends - part) * item_bytes).astype("<i8").tobytes()
        before = int(ends[-1])


def _slices(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    return (values[start : start + _SLICE] for start in range(0, len(values), _SLICE))


class IndexedReader:
    """Reads documents of a `.bin/.idx` pair; the files are mapped, not loaded.

    Any Megatron pair is read, also one with several sequences to a document.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Opens the pair.

        Raises:
            DataError: If a file is missing, or the two do not belong together.
        """
        idx_path, bin_path = beside(prefix, ".idx"), beside(prefix, ".bin")
        header = read_index_header(idx_path)
        size = idx_path.stat().st_size
        if size < header.idx_bytes:  # longer: a multimodal index appends one byte a sequence
            raise DataError(f"{idx_path}: has {size:,} bytes, its header says {header.idx_bytes:,}; tokenize it again")
        raw = np.memmap(idx_path, dtype=np.uint8, mode="r")
        sequences = header.sequences
        starts = HEADER_BYTES, HEADER_BYTES + 4 * sequences, HEADER_BYTES + 12 * sequences
        self._sequence_lengths = np.frombuffer(raw, "<i4", sequences, starts[0])
        self._pointers = np.frombuffer(raw, "<i8", sequences, starts[1])
        self._documents = np.frombuffer(raw, "<i8", header.documents + 1, starts[2])
        self.header = header
        tokens = int(self._sequence_lengths.sum(dtype=np.int64))
        expected = tokens * ITEM_BYTES[header.dtype]
        if not bin_path.exists() or bin_path.stat().st_size != expected:
            found = f"has {bin_path.stat().st_size:,} bytes" if bin_path.exists() else "is missing"
            raise DataError(f"{bin_path}: {found}, its index says {expected:,}; tokenize it again")
        self.tokens = tokens
        empty = np.zeros(0, np.uint8)  # an empty file cannot be mapped
        self._bin = np.memmap(bin_path, dtype=np.uint8, mode="r") if tokens else empty

    def __len__(self) -> int:
        """Number of documents."""
        return self.header.documents

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[documents] tokens of each document."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._sequence_lengths, dtype=np.int64)])
        return np.diff(ends[self._documents])

    def lengths_between(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """[documents first..end] tokens of each; nothing is read of the others."""
        bounds = self._documents[first : end + 1]
        lengths = self._sequence_lengths[int(bounds[0]) : int(bounds[-1])]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        return np.diff(ends[bounds - bounds[0]])

    def __getitem__(self, document: int) -> Ids:
        """The ids of one document, [tokens].

        Raises:
            IndexError: If there is no such document.
        """
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} is not in 0..{len(self) - 1}")
        first, end = int(self._documents[document]), int(self._documents[document + 1])
        tokens = int(self._sequence_lengths[first:end].sum(dtype=np.int64))
        start = int(self._pointers[first]) if tokens else 0
        return np.frombuffer(self._bin, self.header.dtype, tokens, start)
