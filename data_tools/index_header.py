r"""The 34 bytes at the start of a Megatron `.idx` file, readable without numpy.

| offset | bytes | field |
|--------|-------|-------|
| 0      | 9     | magic `MMIDIDX\x00\x00` |
| 9      | 8     | version, always 1 |
| 17     | 1     | dtype code of the tokens in `.bin`: 4 int32, 8 uint16 |
| 18     | 8     | number of sequences |
| 26     | 8     | number of document indices = documents + 1 |

Little-endian, unpadded. The rest of the file is described in `indexed.py`.

Source: megatron.core.datasets.indexed_dataset (0.19), `_IndexWriter`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_tools.errors import DataError

DTypeName = Literal["uint16", "int32"]
"""Types of one token on disk."""

DTYPE_CODES: dict[DTypeName, int] = {"int32": 4, "uint16": 8}
ITEM_BYTES: dict[DTypeName, int] = {"int32": 4, "uint16": 2}
_DTYPE_NAMES: dict[int, DTypeName] = {code: name for name, code in DTYPE_CODES.items()}

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class IndexHeader:
    """What the header of an `.idx` file says."""

    dtype: DTypeName
    sequences: int
    documents: int

    def to_bytes(self) -> bytes:
        """The header as it stands in the file."""
        return _HEADER.pack(_MAGIC, _VERSION, DTYPE_CODES[self.dtype], self.sequences, self.documents + 1)

    @property
    def idx_bytes(self) -> int:
        """Size in bytes of the whole `.idx` file: header, int32 lengths, int64 pointers, int64 documents."""
        return HEADER_BYTES + 12 * self.sequences + 8 * (self.documents + 1)


def read_index_header(path: Path) -> IndexHeader:
    """Reads and checks the header of an `.idx` file.

    Raises:
        DataError: If the file is missing, too short, not an index, or of a dtype that holds no token ids.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; tokenize it again") from None
    if len(raw) < HEADER_BYTES:
        raise DataError(f"{path}: has {len(raw)} bytes, its header alone {HEADER_BYTES}; tokenize it again")
    magic, version, code, sequences, document_indices = _HEADER.unpack(raw)
    if magic != _MAGIC or version != _VERSION:
        raise DataError(f"{path}: not a Megatron index of version {_VERSION}; tokenize it again")
    if code not in _DTYPE_NAMES:
        raise DataError(f"{path}: dtype code {code} is none of {sorted(_DTYPE_NAMES)} (int32, uint16)")
    return IndexHeader(dtype=_DTYPE_NAMES[code], sequences=sequences, documents=document_indices - 1)
