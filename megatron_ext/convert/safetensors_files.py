"""Safetensors files, a tensor at a time: neither writer nor reader ever holds a file.

    bytes 0-7     n, little-endian
    bytes 8-8+n   JSON, padded with spaces to a multiple of 8:
                  {"__metadata__": {"format": "pt"},
                   "NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    then          the tensors, in the order and at the offsets of the JSON

A float32 tensor of 2 x 3 alone: 8 + 96 + 24 bytes. Several files have `model.safetensors.index.json` beside them,
`{"metadata": {"total_size": bytes}, "weight_map": {"NAME": "FILE"}}`. The library writes only what is in memory
as a whole, so writing is done here; it reads. (Source: safetensors' own format page; transformers for the index.)
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_tools.errors import DataError, SetupError

SHARD_BYTES = 5 * 10**9
"""Of one file at most, unless a single tensor is larger: transformers' own measure before version 5."""

INDEX = "model.safetensors.index.json"
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class TensorFacts(NamedTuple):
    """What a file says of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    folder: Path, tensors: Mapping[str, TensorFacts], read: Callable[[str], Tensor], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes tensors one after the other, and an index where they need several files.

    Args:
        folder: An existing one.
        tensors: What there will be, in order.
        read: Gives a tensor; called once for each, in order.
        shard_bytes: Of one file at most.
    """
    files = _divide(tensors, shard_bytes)
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    names = names if len(names) > 1 else ["model.safetensors"]
    for name, inside in zip(names, files, strict=True):
        _write_file(folder / name, {key: tensors[key] for key in inside}, read)
    if len(names) > 1:
        where = {key: name for name, inside in zip(names, files, strict=True) for key in inside}
        index = {"metadata": {"total_size": sum(facts.bytes for facts in tensors.values())}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _divide(tensors: Mapping[str, TensorFacts], shard_bytes: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    filled = 0
    for name, facts in tensors.items():
        if files[-1] and filled + facts.bytes > shard_bytes:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += facts.bytes
    return files


def _write_file(path: Path, tensors: Mapping[str, TensorFacts], read: Callable[[str], Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, facts in tensors.items():
        offsets = [end, end := end + facts.bytes]
        header[name] = {"dtype": _CODES[facts.dtype], "shape": list(facts.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, facts in tensors.items():
            tensor = read(name)
            assert TensorFacts(tuple(tensor.shape), tensor.dtype) == facts, f"{name} is not what was announced"
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


class SafetensorsFolder:
    """The tensors of a Hugging Face checkpoint, read by rows.

    Args:
        folder: Holds `model.safetensors`, or an index and the files that it names.

    Raises:
        DataError: Without either; or a file is missing, truncated or no safetensors, or holds a tensor that is
            neither float32 nor bfloat16, or the index names another file for a tensor than holds it.
        SetupError: The library is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._open = _library()
        self.folder = folder
        self.tensors: dict[str, TensorFacts] = {}
        self._file_of: dict[str, Path] = {}
        for path, expected in _files_of(folder).items():
            self._look_into(path, expected)

    def read(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """Rows `begin` to `end` of a tensor, in memory of its own; the file is closed again."""
        with self._open(str(self._file_of[name]), framework="pt") as file:
            rows: Tensor = file.get_slice(name)[begin : self.tensors[name].shape[0] if end is None else end]
            return rows.clone()

    def _look_into(self, path: Path, expected: set[str] | None) -> None:
        try:
            with self._open(str(path), framework="pt") as file:
                names = set(file.keys())
                for name in names:
                    found = file.get_slice(name)
                    self.tensors[name] = TensorFacts(tuple(found.get_shape()), _dtype(path, name, found.get_dtype()))
                    self._file_of[name] = path
        except DataError:
            raise
        except Exception as error:  # the library's own class, and OSError
            raise DataError(
                f"{path}: cannot be read: {error}; it is truncated, or no safetensors file. Download it again."
            ) from None
        if expected is not None and names != expected:
            name = min(names ^ expected)
            where = "is not in it, and the index says so" if name in expected else "is in it, and not in the index"
            raise DataError(f"{path}: {name} {where}: {path.parent / INDEX}. Take a whole checkpoint.")


def _files_of(folder: Path) -> dict[Path, set[str] | None]:
    """The files of a checkpoint, and the tensors that the index says are in each."""
    one, index = folder / "model.safetensors", folder / INDEX
    if one.is_file():
        return {one: None}
    if not index.is_file():
        raise DataError(
            f"{folder}: holds neither model.safetensors nor {INDEX}; name the folder of a Hugging Face checkpoint "
            "(one of pytorch_model.bin files is saved anew with save_pretrained)"
        )
    try:
        where: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        files = {folder / name: {key for key in where if where[key] == name} for name in sorted(set(where.values()))}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{index}: damaged: it holds no weight_map. Download it again.") from None
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise DataError(f"{folder}: {', '.join(absent)}: missing, and {INDEX} names it. Download it again.")
    return files


def _dtype(path: Path, name: str, code: str) -> torch.dtype:
    if code not in _DTYPES:
        raise DataError(
            f"{path}: {name} is stored as {code}; F32 and BF16 can be read. Save the model anew in bfloat16."
        )
    return _DTYPES[code]


def _library() -> Any:
    try:
        from safetensors import safe_open
    except ImportError:
        raise SetupError("safetensors is not installed; install the extra: pip install 'megatron-ext[hf]'") from None
    return safe_open
