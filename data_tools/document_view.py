"""Single documents and packed rows, with what is trained on and where each came from.

A document's number counts through all shards of a dataset, from 0; so does a row's in its packs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.atomic_files import beside
from data_tools.dataset import Shard, StoredDataset, read_dataset
from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import read_masks
from data_tools.origin import DOMAINS, ORIGIN
from data_tools.pack_index import PackManifest, pack_manifest_path, read_pack_manifest, read_packs

Mask = npt.NDArray[np.bool_]
_SHARDS_OPEN = 16
"""Of one dataset at once, three mapped files each."""


@dataclass(frozen=True)
class Origin:
    """Where one document came from; see `data_tools.origin`.

    Attributes:
        file: The input.
        row: Of the record, from 1; of a shard it counts from `start`.
        start: First byte of the part of the file that was read.
        id_hash: First 16 hex digits of the sha256 of its id.
        domain: What it is about.
        split: train or validation.
        answer_tokens: Tokens of its answer; None where nothing marks one.
    """

    file: str
    row: int
    start: int
    id_hash: str
    domain: str
    split: str
    answer_tokens: int | None

    def __str__(self) -> str:
        """Where to look for it: file and row."""
        return f"{self.file} row {self.row:,}{f' from byte {self.start:,}' if self.start else ''}"


@dataclass(frozen=True)
class DocumentView:
    """One document.

    Attributes:
        number: In the dataset.
        ids: [tokens].
        trained: [tokens] whether each is trained on; None in a dataset of text, where all are.
        origin: Where it came from; None where the dataset does not say.
    """

    number: int
    ids: npt.NDArray[Any]
    trained: Mask | None
    origin: Origin | None


@dataclass(frozen=True)
class PieceView:
    """One piece of a row.

    Attributes:
        document: It is of this document.
        ranges: The tokens of the document that it holds: two where thinking was trimmed.
        ids: [tokens].
        trained: As in `DocumentView`.
    """

    document: DocumentView
    ranges: tuple[tuple[int, int], ...]
    ids: npt.NDArray[Any]
    trained: Mask | None


class Documents:
    """The documents of a finished dataset, of one pair or of shards.

    Attributes:
        stored: The dataset.
    """

    def __init__(self, stored: StoredDataset) -> None:
        self.stored = stored
        self._ends = np.cumsum([shard.manifest.documents for shard in stored.shards])
        # Opened where they are asked for: of thousands of shards, all at once are more than a process may have open.
        self._reader = lru_cache(maxsize=_SHARDS_OPEN)(lambda shard: IndexedReader(stored.shards[shard].prefix))
        self._masks = lru_cache(maxsize=_SHARDS_OPEN)(lambda shard: read_masks(stored.shards[shard].prefix))

    def __len__(self) -> int:
        """Number of documents."""
        return int(self._ends[-1])

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[documents] tokens of each."""
        return np.concatenate([self._reader(shard).lengths for shard in range(len(self._ends))])

    @cached_property
    def trained(self) -> npt.NDArray[np.int64] | None:
        """[documents] trained tokens of each; None in a dataset of text."""
        if not self.stored.chat:
            return None
        return np.concatenate(
            [
                masks.trained_before(np.arange(len(masks)), self._reader(shard).lengths)
                for shard, masks in enumerate(map(self._masks, range(len(self._ends))))
            ]
        )

    def __getitem__(self, number: int) -> DocumentView:
        """One document.

        Raises:
            IndexError: If there is none of that number.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} is not in 0..{len(self) - 1}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        inside = number - (int(self._ends[shard - 1]) if shard else 0)
        ids = self._reader(shard)[inside]
        trained = self._masks(shard).mask(inside, tokens=len(ids)) if self.stored.chat else None
        return DocumentView(number, ids, trained, _origin(self.stored.shards[shard], inside))


def place_of(dataset: StoredDataset, number: int) -> str:
    """Says which document of a dataset is meant: its number, from 0, and where it came from if that is known."""
    origin = Documents(dataset)[number].origin
    return f"document {number:,}{f', {origin}' if origin else ''}"


def _origin(shard: Shard, document: int) -> Origin | None:
    if shard.manifest.origin_bytes is None:
        return None
    found = np.fromfile(beside(shard.prefix, ".origin"), ORIGIN, 1, offset=document * ORIGIN.itemsize)[0]
    source = shard.manifest.sources[int(found["source"])]
    return Origin(
        file=source.path,
        row=int(found["row"]),
        start=source.start,
        id_hash=f"{int(found['id_hash']):016x}",
        domain=DOMAINS[int(found["domain"])],
        split=("train", "validation")[int(found["split"])],
        answer_tokens=None if found["answer_tokens"] < 0 else int(found["answer_tokens"]),
    )


class Rows:
    """The rows of finished packs.

    Attributes:
        manifest: Of the packs.
        documents: Of the dataset that is packed.
    """

    def __init__(self, out: Path) -> None:
        """Opens packs and the dataset that they name.

        Raises:
            DataError: If either is not finished or damaged, or the packs are of another dataset.
        """
        self.manifest: PackManifest = read_pack_manifest(out)
        prefix = pack_manifest_path(out).parent / self.manifest.data
        stored = read_dataset(prefix)
        if stored.data_id != self.manifest.data_id:
            raise DataError(
                f"{out}: packs data {self.manifest.data_id[:16]}, but {prefix} is now {stored.data_id[:16]}; "
                "pack it again with --overwrite"
            )
        self.documents = Documents(stored)
        self._first_piece, self.pieces = read_packs(out)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._first_piece) - 1

    def __getitem__(self, number: int) -> list[PieceView]:
        """The pieces of one row.

        Raises:
            IndexError: If there is none of that number.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} is not in 0..{len(self) - 1}")
        first, end = (int(piece) for piece in self._first_piece[number : number + 2])
        return [self._piece(piece) for piece in range(first, end)]

    def _piece(self, piece: int) -> PieceView:
        pieces = self.pieces
        document = self.documents[int(pieces.conversation[piece])]
        start, skip_start, skip_stop, stop = (
            int(column[piece]) for column in (pieces.start, pieces.skip_start, pieces.skip_stop, pieces.stop)
        )
        ranges = tuple((a, b) for a, b in ((start, skip_start), (skip_stop, stop)) if a < b)
        kept = np.concatenate([np.arange(a, b) for a, b in ranges])
        trained = None if document.trained is None else document.trained[kept]
        return PieceView(document, ranges, document.ids[kept], trained)


def open_view(prefix: Path, *, wants_row: bool) -> Documents | Rows:
    """What stands at a prefix: packs where a row is wanted or nothing else is there, else a dataset.

    Raises:
        UsageError: If a row is wanted of what has none.
        DataError: If nothing finished stands there.
    """
    has_packs = pack_manifest_path(prefix).exists()
    if wants_row and not has_packs:
        raise UsageError(f"--row: {pack_manifest_path(prefix)}: no such file; name the --output of a pack command")
    if has_packs and (wants_row or not beside(prefix, ".manifest.json").exists()):
        return Rows(prefix)
    return Documents(read_dataset(prefix))
