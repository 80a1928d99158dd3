"""How far a stage has come is read from a file that is written meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.study.log_lines import last_lines
from megatron_ext.study.progress import read_progress
from tests.support.stand_in_study import stage_id, stand_in_plan

NODE = stand_in_plan(Path("runs"), steps=10).stage(stage_id("a"))  # 10 steps of 100 tokens


def write(folder: Path, *steps: dict[str, object], end: str = "") -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + end)


def test_the_last_step_gives_step_and_loss_and_the_mean_speed_gives_the_time_left(tmp_path: Path) -> None:
    # 100 tokens at 50 and at 100 tokens/s: 3 s for 200 tokens; 8 steps of 100 tokens are left
    write(tmp_path, {"step": 1, "loss": 3.0, "tokens_per_s": 50.0}, {"step": 2, "loss": 2.5, "tokens_per_s": 100.0})
    progress = read_progress(tmp_path, NODE)
    assert progress is not None
    assert (progress.step, progress.total, progress.loss) == (2, 10, 2.5)
    assert progress.tokens_per_s == pytest.approx(200 / 3)
    assert progress.seconds_left == pytest.approx(12)


def test_half_a_line_counts_for_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"step": 1, "loss": 3.0, "tokens_per_s": 50.0}, end='{"step": 2, "lo')
    progress = read_progress(tmp_path, NODE)
    assert progress is not None
    assert progress.step == 1


def test_a_line_that_is_no_json_counts_for_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"step": 1, "loss": 3.0, "tokens_per_s": 50.0}, end='{"step": 2, "lo\n')
    progress = read_progress(tmp_path, NODE)
    assert progress is not None
    assert progress.step == 1


def test_a_loss_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"step": 1, "loss": float("nan"), "tokens_per_s": 50.0})
    progress = read_progress(tmp_path, NODE)
    assert progress is not None
    assert progress.loss is None


def test_a_stage_without_steps_has_no_progress(tmp_path: Path) -> None:
    assert read_progress(tmp_path, NODE) is None


def test_of_a_long_file_only_whole_lines_of_its_end_are_read(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("".join(f"{number:09}\n" for number in range(20_000)))  # 200,000 bytes, of which 65,536 are read
    lines = last_lines(file)
    assert lines[0] == "000013447"  # 6,553.6 lines of 10 bytes: the first is cut
    assert lines[-1] == "000019999"
