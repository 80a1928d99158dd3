"""Packs written out for trainers that do not read `OUT.packs`.

`bridge-parquet`, for Megatron-Bridge's packed fine-tuning data: a row a pack, lists of int32 and (the mask) int8.

| column       | holds |
|--------------|-------|
| input_ids    | the tokens of the pieces, one after the other |
| loss_mask    | of each position whether the *next* token of its piece is trained on: 0 at the last one |
| seq_start_id | where each piece starts in input_ids |

Bridge feeds a piece of n tokens as n - 1 inputs, so with a pad multiple p a piece is filled with the
end-of-document id to a multiple of p plus one; the mask is 0 there.

`megatron-jsonl`, for Megatron's own SFTDataset: a line a pack, `{"messages": […]}`, conversations one after
the other. It renders and tokenises them again, by its own prompt format, so lengths are only as exact as
the two formats agree: what does not fit its sequence length it leaves out, and says nothing. It tells
conversations apart by their system turns, so one without gets an empty one, and one with a system turn
further on is refused; it knows no tools, and only whole conversations. Its prompt formats `default` and
`identity` train on all tokens.

Source: Megatron-Bridge `data/packing/algorithms.py` (fill_packing_strategy rolls the mask and counts n - 1),
`parquet.py` (GPTSFTPackedParquetDataset) and `gpt_sft.py` (collate_fn), main of August 2026;
megatron.training.datasets.sft_dataset and core's sft_tokenizer, 0.19.2.
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

from data_tools.adapters import adapter_named
from data_tools.atomic_files import beside
from data_tools.errors import DataError, SetupError, UsageError
from data_tools.inputs import find_inputs, open_part
from data_tools.inspection import Dataset
from data_tools.loss_mask import LossMasks
from data_tools.manifest import Manifest, SourceFile
from data_tools.origin import ORIGIN
from data_tools.packing import Packing
from data_tools.parts import Part, place_of
from data_tools.readers import BadRecord
from data_tools.records import Conversation
from data_tools.speech import messages_of

_CHANGED = "is not the file that the dataset was made of; make the dataset again"
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
    types = {"input_ids": pa.int32(), "loss_mask": pa.int8(), "seq_start_id": pa.int32()}
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in types.items()])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, packing.packs, _ROWS):
            rows = [
                _bridge_row(dataset, masks, packing, pack) for pack in range(first, min(first + _ROWS, packing.packs))
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _bridge_row(dataset: Dataset, masks: LossMasks | None, packing: Packing, pack: int) -> dict[str, npt.NDArray[Any]]:
    ids: list[npt.NDArray[np.int32]] = []
    trained: list[npt.NDArray[np.int8]] = []
    for piece in range(int(packing.first_piece[pack]), int(packing.first_piece[pack + 1])):
        piece_ids, mask = piece_tokens(dataset, masks, packing, piece)
        size = max(1, -(-(len(piece_ids) - 1) // packing.pad_multiple)) * packing.pad_multiple + 1
        size = len(piece_ids) if packing.pad_multiple == 1 else size
        fill = size - len(piece_ids)
        ids.append(np.pad(piece_ids.astype(np.int32), (0, fill), constant_values=dataset.manifest.eod_id))
        trained.append(np.pad(mask[1:].astype(np.int8), (0, fill + 1)))
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
        ends = _spool(spool, dataset)
        for pack in range(packing.packs):
            messages: list[bytes] = []
            for document in pieces.conversation[packing.first_piece[pack] : packing.first_piece[pack + 1]].tolist():
                spool.seek(ends[document])
                messages.append(spool.read(ends[document + 1] - ends[document]))
            out.write(b'{"messages":[' + b",".join(messages) + b"]}\n")


def _spool(spool: BinaryIO, dataset: Dataset) -> list[int]:
    """Writes the messages of each document; gives where each starts, and the end."""
    origins = np.fromfile(beside(dataset.prefix, ".origin"), ORIGIN)
    ends = [0]
    for number, source in enumerate(dataset.manifest.sources):
        rows = origins["row"][origins["source"] == number].tolist()
        for messages in _messages(dataset.manifest, source, rows):
            ends.append(ends[-1] + spool.write(orjson.dumps(messages)[1:-1]))
    return ends


def _messages(manifest: Manifest, source: SourceFile, rows: list[int]) -> Iterator[list[dict[str, Any]]]:
    """The messages of some rows of a source, each a document."""
    assert manifest.chat is not None, "checked by the caller"
    adapter = adapter_named(manifest.adapter)
    file = find_inputs([source.path]).files[0]
    is_cut = source.start > 0 or source.bytes < file.size
    part = Part(file, source.start, source.start + source.bytes) if is_cut else Part(file)
    wanted, found = set(rows), 0
    reader, convert = open_part(part, adapter.columns), adapter.for_file(file.path)
    for block in reader.blocks():
        for row, raw in enumerate(block.records, start=block.first_row):
            if row not in wanted:
                continue
            found += 1
            try:
                item = convert(raw)
            except BadRecord as error:
                raise DataError(f"{place_of(part, row)}: {error}; {_CHANGED}") from None
            if not isinstance(item, Conversation):
                raise DataError(f"{place_of(part, row)}: is no conversation any more; {_CHANGED}")
            yield _with_system(item, manifest.chat.thinking, place_of(part, row))
    if found != len(rows) or reader.seen().sha256 != source.sha256:
        raise DataError(f"{source.path}: {_CHANGED}")


def _with_system(conversation: Conversation, thinking: Any, place: str) -> list[dict[str, Any]]:
    messages = messages_of(conversation, thinking=thinking)
    if conversation.tools or any(turn.role == "tool" or turn.tool_calls for turn in conversation.turns):
        raise DataError(f"{place}: --out megatron-jsonl: Megatron's SFTDataset knows no tools")
    if any(turn.role == "system" for turn in conversation.turns[1:]):
        raise DataError(
            f"{place}: --out megatron-jsonl: a system turn that is not the first; Megatron's SFTDataset would start "
            "another conversation there"
        )
    return messages if messages[0]["role"] == "system" else [{"role": "system", "content": ""}, *messages]


EXPORTS = {
    "megatron-jsonl": Export(".jsonl", write_megatron_jsonl),
    "bridge-parquet": Export(".parquet", write_bridge_parquet),
}
