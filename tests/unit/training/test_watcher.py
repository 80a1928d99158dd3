"""What the main rank writes and says of each step."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.training.rank_times import slowest
from megatron_ext.training.slow_ranks import WINDOW_STEPS, Place
from megatron_ext.training.state import StepResult, TrainState
from megatron_ext.training.watcher import Watcher
from tests.support.plans import make_plan

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"
LOSSES = [2.0] * 12 + [4.0, 3.5, 2.0, 3.25]


def watch(
    file: Path, losses: list[float], *, from_step: int = 0, loss_kinds: dict[int, str] | None = None, **result: Any
) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl after steps with these losses."""
    tokens = 128 * from_step
    state = TrainState(step=from_step, consumed_samples=4 * from_step, consumed_tokens=tokens, trained_tokens=tokens)
    places = [Place("node-a", 0), Place("node-b", 0)]
    with Watcher(file, make_plan(), state, last_step=100, places=places) as watcher:
        for loss in losses:
            step = StepResult(
                loss=loss,
                loss_by_source={"toy": loss},
                grad_norm=1.0,
                lr=0.1,
                samples=4,
                processed_tokens=128,
                trained_tokens=128,
                loss_kind=(loss_kinds or {}).get(state.step + 1, ""),
                **result,
            )
            state = state.advance(step)
            watcher.on_step(state, step, seconds=0.5, validation={}, save_s=0.0)
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_spike_is_in_its_lines_and_warned_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = watch(tmp_path / "metrics.jsonl", LOSSES)
    assert {line["step"]: line["loss_spike"] for line in lines if "loss_spike" in line} == {13: 2.0, 14: 1.5, 16: 1.25}
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert [warning.split(" (")[0] for warning in warnings] == [
        "WARNING: step 13: loss 4.000 is 2.000 nats above the median of the last 50 steps",
        "WARNING: step 16: loss 3.250 is 1.250 nats above the median of the last 50 steps",
    ]


def test_a_resumed_run_measures_spikes_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole = watch(tmp_path / "whole.jsonl", LOSSES)
    watch(tmp_path / "cut.jsonl", LOSSES[:14])
    assert watch(tmp_path / "cut.jsonl", LOSSES[12:], from_step=12) == whole


@pytest.mark.parametrize("torn", ['{"step": 3', '{"step": 3\n', "\0\0\0\n", "3\n"])
def test_a_last_line_that_a_killed_run_left_is_written_again(tmp_path: Path, torn: str) -> None:
    whole = watch(tmp_path / "whole.jsonl", LOSSES[:4])
    watch(tmp_path / "torn.jsonl", LOSSES[:2])
    with (tmp_path / "torn.jsonl").open("a") as file:
        file.write(torn)
    assert watch(tmp_path / "torn.jsonl", LOSSES[2:4], from_step=2) == whole


def test_a_skipped_step_is_null_in_json_and_no_spike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = watch(tmp_path / "metrics.jsonl", [math.nan], skipped="step 1: loss is nan; the weights are those of 0.")
    assert line["loss"] is None
    assert line["loss_by_source"] == {"toy": None}
    assert line["skipped_steps"] == 1
    assert "WARNING: step 1: loss is nan" in capsys.readouterr().out
    assert watch(tmp_path / "metrics.jsonl", [2.0], from_step=1)[1]["loss"] == 2.0, "goes on behind a null"


def test_a_switch_of_the_loss_is_said_once_and_in_every_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is resumed behind the switch does not say it again."""
    kinds = {1: "token", 2: "token", 3: "sample", 4: "sample"}
    lines = watch(tmp_path / "metrics.jsonl", [5.0, 5.0, 3.5], loss_kinds=kinds)
    assert [line["loss_kind"] for line in lines] == ["token", "token", "sample"]
    said = "step 3: from here on the loss weighs by sample, not by token (sft.loss_switch_tokens)"
    assert capsys.readouterr().out.count(said) == 1
    assert watch(tmp_path / "metrics.jsonl", [3.5], from_step=3, loss_kinds=kinds)[3]["loss_kind"] == "sample"
    assert "from here on" not in capsys.readouterr().out


def test_tokens_sampled_are_no_field_of_a_stage_that_samples_nothing(tmp_path: Path) -> None:
    (line,) = watch(tmp_path / "metrics.jsonl", [2.0])
    assert "sampled_tokens" not in line


def test_the_slowest_rank_is_measured_against_the_faster_half() -> None:
    assert slowest((1.0, 4.0)) == {"slowest_rank": 1, "slowest_s": 4.0, "median_s": 1.0, "ratio": 4.0}
    assert slowest((2.0, 1.0, 3.0)) == {"slowest_rank": 2, "slowest_s": 3.0, "median_s": 2.0, "ratio": 1.5}


def test_the_metrics_page_names_every_field_and_no_other(tmp_path: Path) -> None:
    norms = {"grad_norm_by_kind": {"mamba": 1.0}, "weight_norm_by_kind": {"mamba": 1.0}}
    lines = watch(
        tmp_path / "metrics.jsonl",
        [*LOSSES, *[2.0] * (WINDOW_STEPS - len(LOSSES))],
        rank_seconds=(1.0, 2.0),
        norms=norms,
        loss_by_domain={"math": 1.0},
        loss_kinds={1: "token"},
    )
    written = {field for line in lines for field in line}
    fields = PAGE.read_text().split("The other files")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", fields, flags=re.MULTILINE)) == written
