"""A ledger on the screen: what was trained, what was padding, which checkpoint it is of, and of what samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from megatron_ext.datasets.ledger import PADDING, LedgerRow, ledger_json

BEFORE = LedgerRow(0, "base", "general", "0" * 64, planned=640, read=640, samples=40)
TALKS = LedgerRow(1, "talks", "math", "1" * 64, planned=60, read=30, samples=3, masked=12)
TEXTS = LedgerRow(1, "texts", "code", "2" * 64, planned=20, read=10, samples=2, masked=2)
EMPTY = LedgerRow(1, PADDING, "", PADDING, planned=16, read=8, padding=8)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A stage of kind sft behind a pretrained one, stopped at step 3 of 6."""
    checkpoint = tmp_path / "checkpoints" / "step_3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    (checkpoint / "ledger.json").write_text(ledger_json([BEFORE, TALKS, TEXTS, EMPTY]))
    chain = [{"stage_id": "pretrain-1"}]
    plan = {"stage": "sft", "batch": {"total_steps": 6}, "parent": None, "init_from": {"chain": chain}}
    (checkpoint / "plan.json").write_text(json.dumps(plan))
    return tmp_path


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["ledger", str(path)]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_trained_tokens_are_a_column_and_neither_untrained_nor_padding(
    stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(stage, capsys)
    assert "phase source domain planned read trained epochs first repeated documents again" in lines
    assert "1 talks math 60 30 18 0 0 0 0 0" in lines
    assert "1 texts code 20 10 8 0 0 0 0 0" in lines
    assert any("14 tokens untrained" in line and "8 positions of padding" in line for line in lines)


def test_padding_takes_one_row_and_every_row_has_a_name(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(stage, capsys)
    assert [line for line in lines if "padding" in line.split()[:2]] == ["1 padding 16 8 0 0 0 0 0 0"]
    assert "all everything 736 688 666 0 0 0 0" in lines


def test_rows_are_filled_as_this_stage_has_packed_them(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert any(line.startswith("packed: 83.33 % filled, 8 positions") for line in shown(stage, capsys))  # 40 of 48


def test_samples_are_named_for_what_they_are(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "5 conversations, behind 40 rows of the stages before;"
    assert any(line.startswith(said) for line in shown(stage, capsys))


def test_a_stage_that_is_not_finished_says_so_and_which_checkpoint_was_read(
    stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(stage, capsys)[0] == f"{stage}: not finished; as of checkpoints/step_3, of 6 steps"
    (stage / "stage.json").write_text("{}")
    assert shown(stage, capsys)[0] == f"{stage}: finished; as of checkpoints/step_3, of 6 steps"
    checkpoint = stage / "checkpoints" / "step_3"
    assert shown(checkpoint, capsys)[0] == str(checkpoint)
