"""Packs written out for trainers that do not read `OUT.packs`.

`bridge-parquet`, for Megatron-Bridge's packed fine-tuning data: a row a pack, three lists of int32.

| column       | holds |
|--------------|-------|
| input_ids    | the tokens of the pieces, one after the other |
| loss_mask    | of each position whether the *next* token of its piece is trained on: 0 at the last one |
| seq_start_id | where each piece starts in input_ids |

Bridge feeds a piece of n tokens as n - 1 inputs, so with a pad multiple p a piece is filled with the
end-of-document id to a multiple of p plus one; the mask is 0 there.

`megatron-jsonl`, for Megatron's own SFTDataset: a line a pack, `{"messages": […]}`, conversations one after
the other. It renders and tokenises them again, by its own prompt format, so lengths are only as exact as
the two formats agree. It tells conversations apart by their system turns, so one without gets an empty
one; it knows no tools, and only whole conversations.

Source: Megatron-Bridge `data/datasets/packing_utils.py` (fill_packing_strategy rolls the mask and counts
n - 1); megatron.training.datasets.sft_dataset (core 0.19.2), `_split_conversations`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.adapters import adapter as adapter_named
from data_tools.errors import DataError, SetupError, UsageError
from data_tools.inputs import find_inputs, open_part
from data_tools.inspection import Dataset
from data_tools.loss_mask import LossMasks
from data_tools.manifest import Manifest
from data_tools.packing import Packing
from data_tools.parts import Part, place_of
from data_tools.readers import BadRecord, hash_file
from data_tools.records import Conversation
from data_tools.speech import messages_of

_ROWS = 256
"""Packs of one row group: what is held in memory."""


@dataclass(frozen=True)
class Export:
    """A form, the end of its file's name and its writer."""

    suffix: str
    write: Callable[[Path, Dataset, LossMasks | None, Packing], None]


def piece_tokens(dataset: Dataset, masks: LossMasks | None, packing: Packing, piece: int) -> tuple[Any, Any]:
    """Ids and mask of one piece, [tokens] each."""
    pieces = packing.pieces
    document = int(pieces.conversation[piece])
    ids = dataset.documents[document]
    mask = masks.mask(document, tokens=len(ids)) if masks else np.ones(len(ids), np.bool_)
    columns = (pieces.start, pieces.skip_start, pieces.skip_stop, pieces.stop)
    start, skip_start, skip_stop, stop = (int(column[piece]) for column in columns)
    return (np.concatenate([values[start:skip_start], values[skip_stop:stop]]) for values in (ids, mask))  # type: ignore[return-value]


def write_bridge_parquet(path: Path, dataset: Dataset, masks: LossMasks | None, packing: Packing) -> None:
    """Writes a Parquet file; a row group at a time is in memory.

    Raises:
        SetupError: If pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SetupError(
            "pyarrow is not installed, and Parquet is written with it: pip install 'megatron-ext[parquet]'"
        ) from None
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "loss_mask", "seq_start_id")])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, packing.packs, _ROWS):
            rows = [
                _bridge_row(dataset, masks, packing, pack) for pack in range(first, min(first + _ROWS, packing.packs))
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _bridge_row(
    dataset: Dataset, masks: LossMasks | None, packing: Packing, pack: int
) -> dict[str, npt.NDArray[np.int32]]:
    ids: list[npt.NDArray[np.int32]] = []
    trained: list[npt.NDArray[np.int32]] = []
    for piece in range(int(packing.first_piece[pack]), int(packing.first_piece[pack + 1])):
        piece_ids, mask = piece_tokens(dataset, masks, packing, piece)
        size = max(1, -(-(len(piece_ids) - 1) // packing.pad_multiple)) * packing.pad_multiple + 1
        size = len(piece_ids) if packing.pad_multiple == 1 else size
        fill = size - len(piece_ids)
        ids.append(np.pad(piece_ids.astype(np.int32), (0, fill), constant_values=dataset.manifest.eod_id))
        trained.append(np.pad(mask[1:].astype(np.int32), (0, fill + 1)))
    ends = np.cumsum([len(part) for part in ids])
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int32)
    return {"input_ids": np.concatenate(ids), "loss_mask": np.concatenate(trained), "seq_start_id": starts}


def write_megatron_jsonl(path: Path, dataset: Dataset, masks: LossMasks | None, packing: Packing) -> None:
    """Writes JSON lines of the conversations themselves, read again from their sources.

    Raises:
        UsageError: If a conversation is not whole, or the dataset is not of conversations.
        DataError: If a source is not what it was, or a conversation has tools.
    """
    pieces = packing.pieces
    if dataset.manifest.chat is None:
        raise UsageError("--out megatron-jsonl: the dataset is text; make one of conversations with chat")
    if len(pieces) and (pieces.lengths < dataset.documents.lengths[pieces.conversation]).any():
        raise UsageError("--out megatron-jsonl: holds whole conversations only; give --overlong drop, and no concat")
    with tempfile.TemporaryFile(dir=path.parent) as spool, path.open("wb") as out:
        ends = _spool(spool, dataset.manifest)
        if len(ends) - 1 != dataset.manifest.documents:
            raise DataError(
                f"{dataset.prefix}: its sources give {len(ends) - 1:,} conversations, it has another number"
            )
        for pack in range(packing.packs):
            messages: list[bytes] = []
            for document in pieces.conversation[packing.first_piece[pack] : packing.first_piece[pack + 1]].tolist():
                spool.seek(ends[document])
                messages.append(spool.read(ends[document + 1] - ends[document]))
            out.write(b'{"messages":[' + b",".join(messages) + b"]}\n")


def _spool(spool: BinaryIO, manifest: Manifest) -> list[int]:
    """Writes the messages of each conversation; gives where each starts, and the end."""
    ends = [0]
    for messages in _messages(manifest):
        ends.append(ends[-1] + spool.write(orjson.dumps(messages)[1:-1]))
    return ends


def _messages(manifest: Manifest) -> Iterator[list[dict[str, Any]]]:
    assert manifest.chat is not None, "checked by the caller"
    adapter = adapter_named(manifest.adapter)
    for source, file in zip(
        manifest.sources, find_inputs([source.path for source in manifest.sources]).files, strict=True
    ):
        if hash_file(file.path).sha256 != source.sha256:
            raise DataError(f"{source.path}: is not the file that the dataset was made of; make the dataset again")
        convert = adapter.for_file(file.path)
        for block in open_part(Part(file), adapter.columns).blocks():
            for row, raw in enumerate(block.records, start=block.first_row):
                try:
                    item = convert(raw)
                except BadRecord:
                    continue  # counted when the dataset was made
                if isinstance(item, Conversation):
                    yield _with_system(item, manifest.chat.thinking, place_of(Part(file), row))


def _with_system(conversation: Conversation, thinking: Any, place: str) -> list[dict[str, Any]]:
    messages = messages_of(conversation, thinking=thinking)
    if conversation.tools or any(turn.role == "tool" or turn.tool_calls for turn in conversation.turns):
        raise DataError(f"{place}: --out megatron-jsonl: Megatron's SFTDataset knows no tools")
    return messages if messages[0]["role"] == "system" else [{"role": "system", "content": ""}, *messages]


EXPORTS = {
    "megatron-jsonl": Export(".jsonl", write_megatron_jsonl),
    "bridge-parquet": Export(".parquet", write_bridge_parquet),
}
