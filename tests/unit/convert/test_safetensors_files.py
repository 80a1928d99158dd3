"""Safetensors written a tensor at a time, as the library writes and reads them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_ext.convert.safetensors_files import SafetensorsFolder, TensorFacts, write_safetensors

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0]).bfloat16(),
    "c": torch.arange(4.0).reshape(2, 1, 2),
}
FACTS = {name: TensorFacts(tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path, FACTS, TENSORS.__getitem__)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_tensors_that_need_two_files_have_an_index(tmp_path: Path) -> None:
    write_safetensors(tmp_path, FACTS, TENSORS.__getitem__, shard_bytes=28)  # 24 + 4, then 16
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert sorted(load_file(tmp_path / names[0])) == ["a", "b"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 44}, "weight_map": {"a": names[0], "b": names[0], "c": names[1]}}


def test_rows_are_read_from_files_of_the_library(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert folder.tensors == FACTS
    assert folder.read("a", 1, 2).tolist() == [[3.0, 4.0, 5.0]]
    assert folder.read("b").tolist() == [1.5, -2.0]
