"""A folder that `transformers` and vLLM load, written from any source of Megatron-Core's tensors.

DIR/config.json, generation_config.json             hf_config.py
DIR/model.safetensors, or several and an index      safetensors_files.py
DIR/tokenizer.json, tokenizer_config.json, chat_template.jinja
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data_tools.atomic_files import only_writer, sync_folder, sync_tree
from data_tools.errors import UsageError
from data_tools.tokenizer import TokenizerFacts
from megatron_ext.convert.hf_config import Dtype, hf_config
from megatron_ext.convert.mapping import hf_shapes, pieces_of
from megatron_ext.convert.safetensors_files import SHARD_BYTES, TensorFacts, write_safetensors
from megatron_ext.convert.tensors import by_hf_name, hf_tensor
from megatron_ext.convert.tokenizer_files import (
    copy_tokenizer,
    generation_config,
    pad_on_the_left,
    token_ids,
    write_json,
)
from megatron_ext.recipe.schema import ModelRecipe

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class HfContent(NamedTuple):
    """What a folder says beside its weights."""

    model: ModelRecipe
    padded_vocab_size: int
    tokenizer: Path  # folder
    facts: TokenizerFacts
    sequence_length: int | None  # that it was trained at; None leaves transformers' default
    dtype: Dtype


def write_hf_folder(
    folder: Path, content: HfContent, read: Callable[[str], Tensor], *, shard_bytes: int = SHARD_BYTES
) -> int:
    """Writes weights, a tensor at a time, then tokenizer and config.

    Args:
        folder: An existing one, empty.
        content: What it is of.
        read: Gives a whole Megatron-Core tensor; asked in the order of `read_order`.
        shard_bytes: Of one safetensors file at most.

    Returns:
        Numbers in its tensors; a tied output layer counts twice.
    """
    pieces = by_hf_name(pieces_of(content.model, content.padded_vocab_size))
    shapes = {name: hf_shapes(group)[name] for name, group in pieces.items()}
    dtype = DTYPES[content.dtype]
    tensors = {name: TensorFacts(shape, dtype) for name, shape in shapes.items()}
    write_safetensors(folder, tensors, lambda name: hf_tensor(pieces[name], read, dtype=dtype), shard_bytes=shard_bytes)
    copy_tokenizer(content.tokenizer, folder)
    pad_on_the_left(folder)
    ids = token_ids(content.tokenizer, content.facts)
    config = hf_config(
        content.model,
        padded_vocab_size=content.padded_vocab_size,
        ids=ids,
        sequence_length=content.sequence_length,
        dtype=content.dtype,
    )
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(content.tokenizer, ids))
    return sum(math.prod(shape) for shape in shapes.values())


def read_order(model: ModelRecipe, padded_vocab_size: int) -> list[str]:
    """Megatron-Core's tensors as `write_hf_folder` asks for them; one may come again."""
    pieces = by_hf_name(pieces_of(model, padded_vocab_size))
    return [piece.core for group in pieces.values() for piece in group]


@contextlib.contextmanager
def folder_in_writing(to: Path) -> Iterator[Path]:
    """A folder beside `to` that gets its name at the end, or is removed.

    Raises:
        UsageError: `to` is there already.
        DataError: Another process is writing it.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    writing = to.with_name(f".writing_{to.name}")
    with only_writer(writing):
        if to.exists():
            raise UsageError(f"{to}: is there already; nothing is overwritten. Remove it, or name another folder.")
        shutil.rmtree(writing, ignore_errors=True)  # of a killed run
        writing.mkdir()
        try:
            yield writing
            sync_tree(writing)
            writing.rename(to)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
    sync_folder(to.parent)
