"""The packed rows of an sft stage: made of the datasets' lengths and masks alone, the same wherever they are made.

Runs keep them in the store of the run root (`prepared.py`), kind `conversations`, because the paper's 4.8M
conversations take 6 s of CPU time to draw and pack into rows, some 7 s into steps of conversations (one core of a Xeon
at 2.8 GHz):

| file               | holds |
|--------------------|-------|
| `first_row.npy`    | int64 `[steps + 1]`, as the next ones in numpy's format 1.0: see `data_tools.pack_rows.Rows` |
| `first_piece.npy`  | int64 `[rows + 1]` |
| `conversations.npy`| int64 `[steps]` |
| `pieces.npy`       | int64 `[8, pieces]`: conversation, start, stop, skip_start, skip_stop, source, targets, cut |
| `counts.json`      | of each source, the fields of `SourceCount` |

Worked size: 16 conversations in 7 rows and 4 steps are 128 + 8*5, 128 + 8*8, 128 + 8*4 and 128 + 64*16 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.dataset import read_dataset
from data_tools.drawing import Drawn, Pool, draw
from data_tools.errors import DataError
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import LossMasks, mask_path, read_masks
from data_tools.pack_rows import ROWS_VERSION, Conversations, RowOptions, Rows, SourceCount, make_rows
from data_tools.packing import Changed, Pieces
from data_tools.progress import shown
from megatron_ext.plan.prepared import prepare, prepared_folder, read_prepared
from megatron_ext.plan.stage_plan import SourcePlan
from megatron_ext.recipe.schema import SftRecipe

KIND = "conversations"
_COLUMNS = ("source", "targets", "cut")
_PIECES = ("conversation", "start", "stop", "skip_start", "skip_stop")


def rows_of_stage(
    sources: tuple[SourcePlan, ...],
    options: SftRecipe,
    *,
    sequence_length: int,
    step: int,
    seed: int,
    store: str = "",
    is_kept: bool = False,
) -> Rows:
    """Takes what a stage reads from the store, or draws and packs it.

    Args:
        sources: What each gives; `samples` are conversations, all passes together.
        options: How.
        sequence_length: Tokens of a row.
        step: `global_batch_size`.
        seed: Of the draw and the orders.
        store: Run root whose store may hold the rows; "" for none.
        is_kept: Whether rows that are not there are put into the store.

    Raises:
        DataError: A dataset is damaged, or holds a conversation that is too long.
    """
    key = _key(sources, options, sequence_length, step, seed)
    if is_kept:
        folder, _ = prepare(
            Path(store), KIND, key, lambda folder: _write(folder, _made(sources, options, sequence_length, step, seed))
        )
        return _read(folder, sequence_length, options.pad_multiple)
    folder = prepared_folder(Path(store), KIND, key)
    if store and folder.is_dir() and read_prepared(folder, key):
        return _read(folder, sequence_length, options.pad_multiple)
    return _made(sources, options, sequence_length, step, seed)


def _key(
    sources: tuple[SourcePlan, ...], options: SftRecipe, sequence_length: int, step: int, seed: int
) -> Mapping[str, Any]:
    return {
        "rows_version": ROWS_VERSION,
        "sources": [[source.data_id, source.samples] for source in sources],
        "options": options.model_dump(exclude={"untrained", "loss", "loss_switch_tokens"}),
        "sequence_length": sequence_length,
        "step": step,
        "seed": seed,
    }


@lru_cache(maxsize=2)  # a process that has no store plans a stage and then reads it
def _made(sources: tuple[SourcePlan, ...], options: SftRecipe, sequence_length: int, step: int, seed: int) -> Rows:
    conversations = [read_conversations(source.prefix) for source in sources]
    rounds = draw_of_stage(sources, options, sizes=[len(found.lengths) for found in conversations], seed=seed)
    row_options = _row_options(options, sequence_length, step=step, unit=options.batch_unit, seed=seed)
    twice = 2 * sum(map(len, rounds))  # each is cut, then packed
    with shown("packing conversations", twice, unit="conversations") as progress:
        return make_rows(conversations, rounds, row_options, progress)


def draw_of_stage(sources: Sequence[SourcePlan], options: SftRecipe, *, sizes: Sequence[int], seed: int) -> list[Drawn]:
    """The conversations of each round, all passes together; `sizes` are those that each source has."""
    pools = [
        Pool(source.data_id, size=size, count=source.samples // options.passes)
        for source, size in zip(sources, sizes, strict=True)
    ]
    return draw(pools, rule=options.draw, seed=seed) * options.passes


def _write(folder: Path, rows: Rows) -> None:
    for name in ("first_row", "first_piece", "conversations"):
        np.save(folder / f"{name}.npy", getattr(rows, name).astype(np.int64))
    columns = [getattr(rows.pieces, name) for name in _PIECES] + [getattr(rows, name) for name in _COLUMNS]
    np.save(folder / "pieces.npy", np.stack(columns).astype(np.int64))
    (folder / "counts.json").write_text(json.dumps([asdict(count) for count in rows.counts], indent=1))


def _read(folder: Path, sequence_length: int, pad_multiple: int) -> Rows:
    pieces = np.load(folder / "pieces.npy", mmap_mode="r")
    counts = json.loads((folder / "counts.json").read_bytes())
    return Rows(
        length=sequence_length,
        pad_multiple=pad_multiple,
        first_row=np.load(folder / "first_row.npy"),
        first_piece=np.load(folder / "first_piece.npy"),
        pieces=Pieces(*pieces[: len(_PIECES)]),
        **dict(zip(_COLUMNS, pieces[len(_PIECES) :], strict=True)),
        conversations=np.load(folder / "conversations.npy"),
        counts=tuple(map(_count, counts)),
    )


def _count(fields: dict[str, Any]) -> SourceCount:
    values: dict[str, Any] = {
        name: Changed(**value) if isinstance(value, dict) else value for name, value in fields.items()
    }
    return SourceCount(**values)


@lru_cache(maxsize=64)  # asked for at every validation
def held_out_rows(prefix: str, options: SftRecipe, *, sequence_length: int) -> Rows:
    """Packs all conversations of a held-out dataset once, a row a step; seeds of stages change nothing of it.

    Raises:
        DataError: The dataset is damaged, or holds a conversation that is too long.
    """
    conversations = read_conversations(prefix)
    size = len(conversations.lengths)
    drawn = Drawn(np.zeros(size, np.int64), np.arange(size))
    return make_rows([conversations], [drawn], _row_options(options, sequence_length, step=1, unit="rows", seed=0))


def _row_options(options: SftRecipe, length: int, *, step: int, unit: str, seed: int) -> RowOptions:
    return RowOptions(
        length=length,
        step=step,
        unit="rows" if unit == "rows" else "conversations",
        overlong=options.overlong,
        pad_multiple=options.pad_multiple,
        seed=seed,
    )


def read_conversations(prefix: str) -> Conversations:
    """Lengths and masks of a dataset, one pair or shards; no token is read.

    Raises:
        DataError: It is damaged.
    """
    dataset = read_dataset(prefix)
    lengths = np.concatenate([IndexedReader(shard.prefix).lengths for shard in dataset.shards])
    if dataset.chat is None:
        return Conversations(lengths, None)
    masks = LossMasks.joined(read_masks(shard.prefix) for shard in dataset.shards)
    if len(masks) != len(lengths):
        raise DataError(
            f"{mask_path(prefix)}: masks of {len(masks):,} conversations, the index has {len(lengths):,}; "
            "make them again with chat --overwrite"
        )
    return Conversations(lengths, masks)
