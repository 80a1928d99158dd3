"""A stage remembers which exports were made of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.convert.export import Exported
from megatron_ext.convert.export_record import record_export
from megatron_ext.training.file_list import describe_files, weights_fingerprint, write_file_list


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A stage's checkpoint of one file of weights."""
    folder = tmp_path / "stages" / "pretrain-1" / "checkpoints" / "step_7"
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(b"weights")
    write_file_list(folder, describe_files(folder, [folder / "__0_0.distcp"]))
    (folder.parents[1] / "plan.json").write_text("{}")
    return folder


def exported(to: Path) -> Exported:
    return Exported(to, "bf16", parameters=7, notes=(), difference=0.5)


def test_each_export_is_a_line_of_its_stage(checkpoint: Path, tmp_path: Path) -> None:
    assert record_export(checkpoint, exported(tmp_path / "one")) is None
    assert record_export(checkpoint, exported(tmp_path / "two")) is None
    lines = [json.loads(line) for line in (checkpoint.parents[1] / "exports.jsonl").read_text().splitlines()]
    assert [(line["step"], line["to"], line["dtype"], line["difference"]) for line in lines] == [
        (7, str(tmp_path / "one"), "bf16", 0.5),
        (7, str(tmp_path / "two"), "bf16", 0.5),
    ]
    assert lines[0]["weights"] == weights_fingerprint(checkpoint)


def test_a_checkpoint_outside_a_stage_leaves_a_sentence(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint.parents[1] / "plan.json").unlink()
    sentence = record_export(checkpoint, exported(tmp_path / "one"))
    assert sentence is not None
    assert "lies in no stage's folder" in sentence


def test_a_stage_that_cannot_be_written_leaves_a_sentence(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint.parents[1] / "exports.jsonl").symlink_to("/dev/full")
    sentence = record_export(checkpoint, exported(tmp_path / "one"))
    assert sentence is not None
    assert sentence.endswith("No space left on device; `megatron-ext lineage` will not know of this export")
