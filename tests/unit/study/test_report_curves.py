"""Curves of metrics.jsonl: few points, none of them made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.study.report.curves import MOST_POINTS, curves_of, read_metrics
from megatron_ext.study.report.labels import StageGroup
from tests.support.study_on_disk import stage_node


def write(folder: Path, losses: list[float | None], *, per_step: int = 10, **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "step": step,
            "consumed_tokens": step * per_step,
            "loss": loss,
            "validation": {},
            "lr": 0.1,
            "tokens_per_s": 5.0,
        }
        | more
        for step, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_many_steps_become_means_of_neighbours(tmp_path: Path) -> None:
    steps = 4 * MOST_POINTS
    folder = write(tmp_path, [float(step % 4) for step in range(steps)])
    found = read_metrics(folder, 10 * steps)
    assert found.lines == steps
    points = found.points["loss", ""]
    assert len(points) == MOST_POINTS
    assert {y for _, y in points} == {1.5}  # of 0, 1, 2 and 3
    assert points[0][0] == 20.0  # the middle of the first four steps
    assert points[-1][0] == 10 * steps - 20


def test_few_steps_stay_as_they_are(tmp_path: Path) -> None:
    found = read_metrics(write(tmp_path, [3.0, 2.0, 1.0]), 30)
    assert [y for _, y in found.points["loss", ""]] == [3.0, 2.0, 1.0]


def test_every_held_out_value_is_kept_with_the_one_before_the_first_step(tmp_path: Path) -> None:
    folder = write(tmp_path, [1.0, 1.0], validation={"web": 2.5, "web_low": 2.0, "web_high": 3.0})
    (folder / "before.json").write_text(json.dumps({"validation": {"web": 9.0, "web_low": 8.0}}))
    points = read_metrics(folder, 20).points
    assert {key: found for key, found in points.items() if key[0] == "held_out"} == {
        ("held_out", "web"): [(0.0, 9.0), (10.0, 2.5), (20.0, 2.5)]  # ends of intervals are no curves
    }


def test_a_source_whose_name_ends_like_an_interval_has_its_curve(tmp_path: Path) -> None:
    folder = write(tmp_path, [1.0], validation={"web": 3.0, "cc_high": 2.0, "cc_low": 2.5})
    (folder / "before.json").write_text(json.dumps({"validation": {"cc_high": 9.0}}))
    points = read_metrics(folder, 10).points
    assert {source: found for (quantity, source), found in points.items() if quantity == "held_out"} == {
        "cc_high": [(0.0, 9.0), (10.0, 2.0)],
        "web": [(10.0, 3.0)],
        "cc_low": [(10.0, 2.5)],
    }


def test_time_is_of_steps_and_saving(tmp_path: Path) -> None:
    assert read_metrics(write(tmp_path, [1.0] * 3, save_s=0.5), 30).seconds == pytest.approx(3 * (10 / 5 + 0.5))


def test_a_torn_last_line_is_counted_and_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path, [1.0, 2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "consumed_to')
    found = read_metrics(folder, 30)
    assert (found.lines, found.cut) == (2, 1)


@pytest.mark.parametrize("line", ["3", "[]", '{"step": 3}', "null"])
def test_a_torn_line_that_is_still_json_is_counted_and_left_out(tmp_path: Path, line: str) -> None:
    folder = write(tmp_path, [1.0, 2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line)
    found = read_metrics(folder, 30)
    assert (found.lines, found.cut, found.last["step"]) == (2, 1, 2)


def test_a_step_without_a_speed_takes_no_endless_time(tmp_path: Path) -> None:
    assert read_metrics(write(tmp_path, [1.0, 2.0], tokens_per_s=0.0), 20).seconds == 0.0


def test_a_loss_that_is_not_finite_is_no_point(tmp_path: Path) -> None:
    assert [y for _, y in read_metrics(write(tmp_path, [1.0, None, 3.0]), 30).points["loss", ""]] == [1.0, 3.0]


def test_a_stage_that_has_not_run_has_no_curve(tmp_path: Path) -> None:
    found = read_metrics(tmp_path / "none", 30)
    assert (found.lines, found.points, found.seconds) == (0, {}, 0.0)


def test_seeds_become_a_mean_and_a_band_behind_the_stages_before(tmp_path: Path) -> None:
    nodes = tuple(stage_node("pretrain", "x", parent=None, arms=("a",), replicate=at, tokens=30) for at in (0, 1))
    metrics = {
        node.stage_id: read_metrics(write(tmp_path / node.stage_id, losses), 30)
        for node, losses in zip(nodes, ([1.0, 2.0, 3.0], [3.0, 2.0, 5.0]), strict=True)
    }
    curves = curves_of([StageGroup("x", ("a",), nodes, None, 1_000)], metrics)
    loss = next(curve for curve in curves if curve.quantity == "loss")
    assert loss.mean == (2.0, 2.0, 4.0)
    assert (loss.low, loss.high) == ((1.0, 2.0, 3.0), (3.0, 2.0, 5.0))
    assert loss.lines == 6
    assert all(1_000 < x <= 1_030 for x in loss.tokens)


def test_steps_of_rl_are_taken_together_whatever_their_length(tmp_path: Path) -> None:
    nodes = tuple(stage_node("rl", "x", parent=None, arms=("a",), replicate=at, tokens=30) for at in (0, 1))
    metrics = {
        node.stage_id: read_metrics(
            write(tmp_path / node.stage_id, [1.0, 1.0], per_step=per, validation={"q": rate}), 30
        )
        for node, per, rate in zip(nodes, (10, 30), (0.25, 0.5), strict=True)
    }
    curves = curves_of([StageGroup("x", ("a",), nodes, None, 0)], metrics)
    held_out = next(curve for curve in curves if curve.quantity == "held_out")
    assert held_out.tokens == (20.0, 40.0)  # of 10 and 30, of 20 and 60
    assert held_out.mean == (0.375, 0.375)
    assert (held_out.low, held_out.high) == ((0.25, 0.25), (0.5, 0.5))


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    node = stage_node("pretrain", "x", parent=None, arms=("a",), tokens=30)
    metrics = {node.stage_id: read_metrics(write(tmp_path, [1.0, 2.0, 3.0]), 30)}
    assert curves_of([StageGroup("x", ("a",), (node,), None, 0)], metrics)[0].low == ()
