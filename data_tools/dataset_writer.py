"""One dataset while it is written: its pair, where its documents came from, and the names they get at the end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.atomic_files import beside, close_unwritten
from data_tools.bpe import Encoded
from data_tools.index_header import DTypeName
from data_tools.indexed import IndexedWriter, WrittenPair
from data_tools.loss_mask import LossMasks
from data_tools.origin import DOMAINS, Origins, by_domain, tokens_of_domains
from data_tools.records import Domain


@dataclass(frozen=True)
class Batch:
    """Whole documents.

    Attributes:
        documents: Their ids.
        origins: [documents] where each came from.
        masks: Of conversations, what of each is trained on.
    """

    documents: Encoded
    origins: Origins
    masks: LossMasks | None = None

    def chosen(self, keep: npt.NDArray[np.bool_]) -> Batch:
        """Some of the documents.

        Args:
            keep: [documents] which.
        """
        masks = None if self.masks is None else self.masks.chosen(keep)
        return Batch(chosen(self.documents, keep), self.origins[keep], masks)


@dataclass(frozen=True)
class WrittenDataset:
    """What a finished writer put on the disk, under partial names.

    Attributes:
        pair: The `.bin` and `.idx`.
        tokens_by_domain: Tokens of the pair by domain of the document.
        origin_bytes: Size of the `.origin` file.
        origin_sha256: Its hash, hex.
        mask_bytes: Size of the `.mask` file, 0 where there is none.
        mask_sha256: Its hash, hex.
        trained_tokens: Tokens that the mask marks.
    """

    pair: WrittenPair
    tokens_by_domain: dict[Domain, int]
    origin_bytes: int
    origin_sha256: str
    mask_bytes: int = 0
    mask_sha256: str = ""
    trained_tokens: int = 0


class DatasetWriter:
    """Writes documents to `PREFIX.*.partial`; masks are held in memory until the end, some 24 bytes a document."""

    def __init__(self, prefix: Path, *, dtype: DTypeName, suffixes: Sequence[str]) -> None:
        """Opens the files.

        Args:
            prefix: PREFIX.
            dtype: Of a token on the disk.
            suffixes: Of the files; `.mask` among them for conversations.
        """
        self.prefix = prefix
        self._suffixes = suffixes
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._pair = IndexedWriter(self._partial(".bin"), dtype=dtype)
        self._origin = self._partial(".origin").open("wb")
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._masks: list[LossMasks] = []
        self._domain_tokens = np.zeros(len(DOMAINS), np.int64)

    def _partial(self, suffix: str) -> Path:
        return beside(self.prefix, f"{suffix}.partial")

    def add(self, batch: Batch) -> None:
        """Appends whole documents.

        Raises:
            DataError: If an id does not fit the type on disk or a document the index.
        """
        self._pair.add_documents(batch.documents.ids, batch.documents.lengths)
        self._domain_tokens += tokens_of_domains(batch.origins, batch.documents.lengths)
        raw = batch.origins.tobytes()
        self._origin.write(raw)
        self._hash.update(raw)
        self._bytes += len(raw)
        if batch.masks is not None:
            self._masks.append(batch.masks)

    def finish(self) -> WrittenDataset:
        """Closes the files; all that they hold is on the disk when it returns."""
        self._origin.flush()
        os.fsync(self._origin.fileno())
        self._origin.close()
        pair, tokens = self._pair.finish(self._partial(".idx")), by_domain(self._domain_tokens)
        written = WrittenDataset(pair, tokens, self._bytes, self._hash.hexdigest())
        return self._with_mask(written) if ".mask" in self._suffixes else written

    def _with_mask(self, written: WrittenDataset) -> WrittenDataset:
        masks = LossMasks.joined(self._masks)
        content = masks.to_bytes()
        with self._partial(".mask").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return replace(
            written,
            mask_bytes=len(content),
            mask_sha256=hashlib.sha256(content).hexdigest(),
            trained_tokens=masks.trained_tokens,
        )

    def publish(self) -> None:
        """Gives the files their names; until the manifest is written they are no dataset."""
        for suffix in self._suffixes:
            os.replace(self._partial(suffix), beside(self.prefix, suffix))

    def discard(self) -> None:
        """Removes the partial files of a job that failed."""
        self._pair.discard()
        close_unwritten(self._origin)
        for suffix in self._suffixes:
            self._partial(suffix).unlink(missing_ok=True)


def chosen(documents: Encoded, keep: npt.NDArray[np.bool_]) -> Encoded:
    """Some of the documents.

    Args:
        documents: All.
        keep: [documents] which.

    >>> chosen(Encoded(np.array([1, 2, 3], np.uint32), np.array([1, 2])), np.array([False, True])).ids.tolist()
    [2, 3]
    """
    return Encoded(documents.ids[np.repeat(keep, documents.lengths)], documents.lengths[keep])


def with_eod(documents: Encoded, eod_id: int, *, dtype: DTypeName) -> Encoded:
    """The documents with the end-of-document id after each that has a token, in the type on the disk.

    Source: Megatron-LM core_v0.19.0, tools/preprocess_data.py: a document without a token gets no end.

    >>> documents = Encoded(np.array([7, 8, 9], np.uint32), np.array([1, 0, 2]))
    >>> ended = with_eod(documents, 0, dtype="int32"); ended.ids.tolist(), ended.lengths.tolist()
    ([7, 0, 8, 9, 0], [2, 0, 3])
    """
    has_token = documents.lengths > 0
    lengths = documents.lengths + has_token
    ends = np.cumsum(lengths)[has_token] - 1
    is_text = np.ones(int(lengths.sum()), bool)
    is_text[ends] = False
    ids = np.empty(len(is_text), dtype)
    ids[is_text] = documents.ids
    ids[ends] = eod_id
    return Encoded(ids, lengths)
