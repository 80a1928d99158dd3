"""Each run of a stage leaves a line that says when, from which step, with which code and on what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.runtime.code_version import code_version
from megatron_ext.training.file_list import read_plan, weights_fingerprint
from megatron_ext.training.run_record import record_run
from tests.support.toy_project import Run, make_toy_project


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run that is cut at step 2, and the one that goes on to step 3."""
    root = tmp_path_factory.mktemp("toy")
    project = make_toy_project(root)
    return (
        project.run(root / "runs", "training.max_steps=2"),
        project.run(root / "runs", "training.max_steps=3"),
    )


@pytest.fixture
def lines(runs: tuple[Run, Run]) -> list[dict]:
    return [json.loads(line) for line in (runs[1].stage_folder / "runs.jsonl").read_text().splitlines()]


def test_a_run_that_goes_on_adds_a_line(lines: list[dict]) -> None:
    assert [line["begins_at_step"] for line in lines] == [0, 2]


def test_a_line_names_the_weights_that_the_run_took_up(lines: list[dict], runs: tuple[Run, Run]) -> None:
    stage = runs[1].stage_folder
    assert [line["begins_from"] for line in lines] == [
        None,
        {
            "stage_id": stage.name,
            "checkpoint": "step_2",
            "weights": weights_fingerprint(stage / "checkpoints" / "step_2"),
        },
    ]


def test_a_line_begins_anew_behind_one_that_a_kill_has_cut(runs: tuple[Run, Run], tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"started": "2026-')
    record_run(tmp_path, read_plan(runs[1].stage_folder / "checkpoints" / "step_2"), begins_at_step=7)
    cut, whole = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert (cut, json.loads(whole)["begins_at_step"]) == ('{"started": "2026-', 7)


def test_a_line_names_the_code_by_its_content(lines: list[dict]) -> None:
    assert lines[0]["code"]["sha256"] == code_version().sha256


def test_a_line_names_packages_machine_and_placement(lines: list[dict]) -> None:
    assert {"python", "torch", "megatron-core"} <= lines[0]["versions"].keys()
    assert lines[0]["layout"]["world_size"] == 1
    assert lines[0]["backend"] == "local"
    assert lines[0]["hardware"]["cores"] >= 1


def test_a_run_that_has_nothing_to_do_adds_no_line(tmp_path: Path) -> None:
    project = make_toy_project(tmp_path)
    for _ in range(2):
        done = project.run(tmp_path / "runs")
    assert done.code == 0, done.output
    assert "Nothing to do" in done.output
    assert len((done.stage_folder / "runs.jsonl").read_text().splitlines()) == 1
