"""Packed sources whose tokens name their place: token t of the source is the number t, so a row says what it holds."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from data_tools.dataset import read_dataset
from data_tools.loss_mask import LossMasks
from data_tools.manifest import ChatRecord, write_manifest
from megatron_ext.datasets.cursor import EpochSample
from megatron_ext.datasets.documents import Documents
from megatron_ext.datasets.packed_cursor import PackedCursor
from megatron_ext.plan.packed_rows import LongDocuments, Thinking, count_rows, windows_of
from tests.support.sources import write_source

PADDING = 9_999


class Packed(NamedTuple):
    """An arbitrary source and a way to pack it; each document thinks from its second token to its last but one."""

    lengths: list[int]
    block_documents: int = 4
    window_pieces: int = 8
    sequence_length: int = 4
    long_documents: LongDocuments = "split"
    seed: int = 7

    @property
    def has_a_row(self) -> bool:
        """Whether a document is kept."""
        return any(length and self.kept(length) for length in self.lengths)

    def kept(self, length: int) -> int:
        """Tokens of a document that are read."""
        limit = self.sequence_length
        if length <= limit or self.long_documents == "split":
            return length
        if self.long_documents == "truncate":
            return limit
        thinks = max(0, length - 2)
        return limit if self.long_documents == "trim-thinking" and length - thinks <= limit else 0


packings = st.builds(
    Packed,
    lengths=st.lists(st.integers(min_value=0, max_value=11), min_size=1, max_size=14).filter(sum),
    block_documents=st.integers(min_value=1, max_value=5),
    window_pieces=st.integers(min_value=1, max_value=12),
    sequence_length=st.integers(min_value=1, max_value=6),
    long_documents=st.sampled_from(["split", "truncate", "trim-thinking", "drop"]),
    seed=st.integers(min_value=0, max_value=2**63),
).filter(lambda packed: packed.has_a_row)


def write_packed_source(prefix: Path, packed: Packed) -> str:
    """Writes the pair and the ranges of thinking; gives its data id."""
    ends = [0, *accumulate(packed.lengths)]
    documents = [list(range(start, end)) for start, end in pairwise(ends)]
    manifest = write_source(prefix, documents, block_documents=packed.block_documents)
    thinking = np.array([(1, length - 1) if length > 2 else (0, 0) for length in packed.lengths], np.int32)
    none = np.zeros(len(documents) + 1, np.int64)
    content = LossMasks(none, thinking, np.zeros((0, 2), np.int32)).to_bytes()
    Path(f"{prefix}.mask").write_bytes(content)
    chat = ChatRecord(
        version="2",
        template="chat_template.jinja",
        template_sha256="0" * 64,
        train_on=["assistant"],
        thinking="keep",
        trained_tokens=0,
        mask_bytes=len(content),
        mask_sha256=hashlib.sha256(content).hexdigest(),
    )
    manifest = replace(manifest, chat=chat)
    write_manifest(prefix, manifest)
    return manifest.data_id


def packed_cursor(folder: Path, packed: Packed) -> PackedCursor:
    """A cursor over the source, written below `folder`."""
    prefix = folder / "a"
    data_id = write_packed_source(prefix, packed)
    dataset = read_dataset(prefix)
    return PackedCursor(
        Documents(str(prefix), source="a", data_id=data_id),
        windows=windows_of(dataset, sequence_length=packed.sequence_length, window_pieces=packed.window_pieces),
        counts=count_rows(
            dataset,
            sequence_length=packed.sequence_length,
            long_documents=packed.long_documents,
            store=folder,
            is_kept=True,
            window_pieces=packed.window_pieces,
        ),
        seed=packed.seed,
        sequence_length=packed.sequence_length,
        long_documents=packed.long_documents,
        padding_id=PADDING,
        thinking=Thinking(dataset),
    )


def row_of(cursor: PackedCursor, sample: EpochSample) -> list[int]:
    """The tokens of a row, `[sequence_length + 1]`."""
    row = np.empty(cursor.sequence_length + 1, dtype=np.int64)
    cursor.read(sample, row)
    return row.tolist()
