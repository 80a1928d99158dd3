r"""`OUT.packs` and, last of all, `OUT.packs.json`: which tokens of a dataset share which row. No tokens.

`OUT.packs`, little-endian, P packs of N pieces in all:

| offset           | bytes   | field |
|------------------|---------|-------|
| 0                | 8       | magic `DTPACKS\x00` |
| 8                | 8       | version, 1 |
| 16               | 8       | P |
| 24               | 8       | N |
| 32               | 8 (P+1) | int64: number of the first piece of each pack, then N |
| 40 + 8 P         | 8 N     | int64: document of each piece |
| 40 + 8 P + 8 N   | 4 x 4 N | int32: four columns one after the other: start, stop, skip_start, skip_stop |

A piece is the tokens [start, stop) of its document without [skip_start, skip_stop), which is empty
(stop, stop) unless thinking was trimmed. Pieces follow one another in a row; each is padded to a multiple
of `pad_multiple`, the row to `length`. Padding is no part of any piece, and nothing trains on it.

Worked size: 2 packs of 3 pieces in all are 32 + 8*3 + 24*3 = 128 bytes.

`OUT.packs.json`, the manifest, has the fields of `PackManifest`.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from data_tools.atomic_files import beside
from data_tools.errors import DataError
from data_tools.loss_mask import LossMasks
from data_tools.packing import Algorithm, Ints, Overlong, Packing, Pieces

FORMAT_VERSION = 1

_HEADER = struct.Struct("<8sQQQ")
_MAGIC, _VERSION = b"DTPACKS\x00", 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChangedRecord(_Part):
    """Conversations that are not in one pack as they were, and tokens of theirs that are in none."""

    conversations: int
    tokens: int


class ExportRecord(_Part):
    """A file for another trainer."""

    form: str
    bytes: int
    sha256: str


class PackManifest(_Part):
    """What `OUT.packs` holds.

    Attributes:
        format_version: Version of this table; another version is refused.
        data: PREFIX of the dataset, relative to the folder of this file.
        data_id: Identity of the dataset; packs fit no other.
        length, pad_multiple, algorithm, overlong, seed: As asked for; see `packing.py`.
        packs, pieces: Their numbers.
        conversations, tokens: Of the dataset.
        packed_tokens: Tokens in packs; `tokens` less those of `dropped`, `truncated`, `trimmed`.
        padding: Positions of packs without a token: packs x length - packed_tokens.
        dropped, truncated, trimmed, split: Conversations that are not in one pack as they were.
        trained_tokens: Tokens of the dataset that its mask marks.
        packed_trained_tokens: Those of them that are in packs.
        untrained_pieces: Pieces without a trained token.
        packs_bytes, packs_sha256: Of `OUT.packs`.
        export: The file for another trainer, null for none.
        command, versions, created: As in a dataset's manifest.
    """

    format_version: int = FORMAT_VERSION
    data: str
    data_id: str
    length: int
    pad_multiple: int
    algorithm: Algorithm
    overlong: Overlong
    seed: int
    packs: int
    pieces: int
    conversations: int
    tokens: int
    packed_tokens: int
    padding: int
    dropped: ChangedRecord
    truncated: ChangedRecord
    trimmed: ChangedRecord
    split: ChangedRecord
    trained_tokens: int
    packed_trained_tokens: int
    untrained_pieces: int
    packs_bytes: int
    packs_sha256: str
    export: ExportRecord | None
    command: str
    versions: dict[str, str]
    created: str


def packs_path(out: str | Path) -> Path:
    """`OUT.packs`."""
    return beside(out, ".packs")


def pack_manifest_path(out: str | Path) -> Path:
    """`OUT.packs.json`."""
    return beside(out, ".packs.json")


def index_bytes(packing: Packing) -> bytes:
    """The content of `OUT.packs`."""
    pieces = packing.pieces
    columns = (pieces.start, pieces.stop, pieces.skip_start, pieces.skip_stop)
    return b"".join(
        (
            _HEADER.pack(_MAGIC, _VERSION, packing.packs, len(pieces)),
            packing.first_piece.astype("<i8").tobytes(),
            pieces.conversation.astype("<i8").tobytes(),
            *(column.astype("<i4").tobytes() for column in columns),
        )
    )


def read_packs(out: str | Path) -> tuple[Ints, Pieces]:
    """Reads `OUT.packs`; the file is mapped, not loaded.

    Returns:
        [packs + 1] number of the first piece of each pack, and the pieces.

    Raises:
        DataError: If it is missing or damaged.
    """
    path = packs_path(out)
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; make it with: python -m data_tools pack") from None
    magic, version, packs, pieces = _HEADER.unpack(raw[: _HEADER.size]) if len(raw) >= _HEADER.size else (b"", 0, 0, 0)
    if (magic, version) != (_MAGIC, _VERSION):
        raise DataError(f"{path}: not an index of packs of version {_VERSION}; make it again")
    expected = _HEADER.size + 8 * (packs + 1) + 24 * pieces
    if len(raw) != expected:
        raise DataError(f"{path}: has {len(raw):,} bytes, its header says {expected:,}; make it again")
    at = _HEADER.size + 8 * (packs + 1)
    columns = np.frombuffer(raw, "<i4", 4 * pieces, at + 8 * pieces).reshape(4, pieces).astype(np.int64)
    conversation = np.frombuffer(raw, "<i8", pieces, at)
    return np.frombuffer(raw, "<i8", packs + 1, _HEADER.size), Pieces(conversation, *columns)


def trained_tokens(masks: LossMasks | None, pieces: Pieces) -> Ints:
    """Trained tokens of each piece, [pieces]; without masks all are."""
    if masks is None:
        return pieces.lengths
    ends = (pieces.skip_start, pieces.start, pieces.stop, pieces.skip_stop)
    head_end, head_start, tail_end, tail_start = (masks.trained_before(pieces.conversation, end) for end in ends)
    return head_end - head_start + tail_end - tail_start


def target_tokens(masks: LossMasks | None, pieces: Pieces) -> Ints:
    """Trained tokens of each piece that a token of it comes before, [pieces]: a piece's first is predicted by none."""
    if masks is None:
        return np.maximum(pieces.lengths - 1, 0)
    after, before = (masks.trained_before(pieces.conversation, pieces.start + shift) for shift in (1, 0))
    return trained_tokens(masks, pieces) - (after - before)


def read_pack_manifest(out: str | Path) -> PackManifest:
    """Reads the manifest of finished packs.

    Raises:
        DataError: If there is none, or it is malformed.
    """
    path = pack_manifest_path(out)
    try:
        return PackManifest.model_validate(orjson.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; make it with: python -m data_tools pack") from None
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise DataError(f"{path}: no manifest of packs of version {FORMAT_VERSION} ({error}); make it again") from None
