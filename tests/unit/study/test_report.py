"""A report of a study that has run in part: every number from its files, and what is missing said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megatron_ext.evaluate.results import read_results
from megatron_ext.study.launcher import Launched, write_launched
from megatron_ext.study.processes import identity_of
from megatron_ext.study.report.content import Report
from megatron_ext.study.report.make import make_report
from megatron_ext.study.study_plan import ArmDifference, ArmsWithValue
from tests.support.study_on_disk import FOLDER, study_plan, write_study

MISSING = "rl-grpo-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    """Two seeds, of which the second was not trained with rewards."""
    return make_report(write_study(folder, skip=[MISSING]), command="megatron-ext study report toy.yaml")


def test_a_cell_is_the_mean_of_the_results_of_its_seeds(report: Report, folder: Path) -> None:
    row = next(row for row in report.rows if row.label == "ldq-shq")
    cell = next(cell for cell in row.cells if cell.metric == "average")
    found = [
        next(one.value for one in read_results(folder / "runs/stages" / stage / "evaluations" / FOLDER).aggregates[2:])
        for stage in row.stage_ids
    ]
    assert [one.value for one in cell.replicates] == pytest.approx(found)
    assert cell.estimate is not None
    assert cell.estimate.value == pytest.approx(sum(value for value in found if value is not None) / 2)


def test_a_row_counts_the_stages_of_each_kind_behind_its_seeds(report: Report) -> None:
    row = next(row for row in report.rows if row.label == "ldq-shq")
    assert row.seeds_by_stage == {"pretrain": 2, "sft": 2}  # of two stages of pretraining the last one


def test_the_headlines_begin_with_the_last_kind_of_stage(report: Report) -> None:
    assert [(one.stage, one.best, one.baseline, one.evaluated, one.rows) for one in report.headlines] == [
        ("rl", "lmq-shq-grpo", None, 1, 1),
        ("sft", "lmq-shq", "base-shq", 3, 3),
        ("pretrain", "lmq-shq up to pretraining", "base-shq up to pretraining", 3, 3),
    ]
    after_sft = report.headlines[1]
    assert (after_sft.seeds, after_sft.items, after_sft.second) == ((2, 2), 300, "ldq-shq")


def test_what_has_not_run_is_named_with_its_reason_and_counted_nowhere(report: Report) -> None:
    assert [(one.what, one.state, one.reason) for one in report.missing] == [
        ("rl lmq-shq-grpo, seed 2 of 2", "waiting", "nobody has begun it"),
        ("evaluation toy of rl lmq-shq-grpo, seed 2 of 2", "waiting", "its stage is not finished"),
    ]
    cost = next(one for one in report.costs.stages if one.stage_id == MISSING)
    assert (cost.tokens, cost.flops, cost.seconds, cost.evaluation_seconds) == (None, None, None, None)
    assert cost.planned_tokens == 1_000


def test_an_evaluation_that_failed_is_said_with_its_reason_and_log_and_no_number(tmp_path: Path) -> None:
    plan = write_study(tmp_path, seeds=1, items=5)
    stage = "sft-shq_on_ldq-0"
    (tmp_path / "runs/stages" / stage / "evaluations" / FOLDER / "results.json").unlink()
    node = tmp_path / "runs/studies/toy/nodes" / f"{stage}.{FOLDER}"
    node.mkdir(parents=True)
    write_launched(node, Launched("local", 1, 0.0, handle=identity_of(os.getpid()) | {"start_ticks": -1}))
    (node / "attempt_1.log").write_text("error: no chat template\nstudy: exit code 3\n")
    report = make_report(plan, command="x")
    (missing,) = report.missing
    assert (missing.state, missing.reason) == ("failed", "exit code 3: no chat template")
    assert missing.log == str(node / "attempt_1.log")
    cells = next(row for row in report.rows if row.label == "ldq-shq").cells
    assert {(cell.state, cell.reason) for cell in cells} == {("failed", missing.reason)}


def test_steps_that_metrics_do_not_have_are_said(tmp_path: Path) -> None:
    plan = write_study(tmp_path, seeds=1, items=5)
    file = tmp_path / "runs/stages/sft-shq_on_ldq-0/metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    report = make_report(plan, command="x")
    assert report.provenance.unknown == (f"{file}: ends with step 4 of 10: curves and time are of these alone",)
    assert report.costs.unread == 1


def test_the_main_number_is_the_one_of_all_findings_whichever_arms_are_shown(tmp_path: Path) -> None:
    plan = write_study(tmp_path, seeds=1, items=5).model_copy(update={"findings": (), "main_metrics": {"sft": "sums"}})
    found = {one.stage: (one.metric, one.chosen) for one in make_report(plan, command="x").headlines}
    assert found["sft"] == ("sums", "the number that most findings ask for")
    assert found["pretrain"] == ("average", "the suite's last mean")


def test_a_suite_that_is_not_on_this_machine_leaves_the_results_that_are(tmp_path: Path) -> None:
    plan = write_study(tmp_path, seeds=1, items=5, skip=["rl-grpo-0"])
    whole = make_report(plan, command="x")
    suite = plan.evaluations[0].suite
    Path(suite).unlink()
    report = make_report(plan, command="x")
    kept = [row for row in whole.rows if row.stage != "rl"]
    assert [row for row in report.rows if row.stage != "rl"] == kept
    assert report.provenance.unknown == (
        f"{suite}: not on this machine: of what has not been evaluated the columns are not known",
    )


def test_a_confound_is_shown_of_the_arms_that_are_here(tmp_path: Path) -> None:
    values = {"1K": ("base-shq", "gone"), "2K": ("ldq-shq",), "3K": ("gone too",)}
    seen = ArmDifference(
        key="budget.tokens",
        stage="sft",
        values=tuple(ArmsWithValue(value=value, arms=arms) for value, arms in values.items()),
        permitted_by="confounds",
        why="By intent.",
    )
    alone = seen.model_copy(update={"values": seen.values[:1]})
    plan = study_plan(tmp_path / "runs", seeds=1).model_copy(update={"differences": (seen, alone)})
    assert make_report(plan, command="x").differences == ("budget.tokens (sft): 1K: base-shq; 2K: ldq-shq. By intent.",)


def test_a_shared_stage_costs_once_in_the_study_and_in_every_arm(report: Report) -> None:
    # Each seed: 2,000 shared, three bases and three SFT of 1,000; one seed of rewards.
    assert report.costs.total.tokens == 2 * (2_000 + 6 * 1_000) + 1_000
    assert {one.label: one.tokens for one in report.costs.arms} == {
        "base-shq": 8_000,
        "ldq-shq": 8_000,
        "lmq-shq": 8_000,
        "lmq-shq-grpo": 9_000,
    }
    assert report.costs.total.planned_tokens == 18_000


def test_time_is_of_steps_and_evaluations_times_processes(report: Report) -> None:
    stage = next(one for one in report.costs.stages if one.stage_id == "sft-shq_on_ldq-0")
    assert (stage.seconds, stage.evaluation_seconds, stage.processes) == (10.0, 2.0, 1)  # 1,000 tokens at 100 a second
    total = report.costs.total
    assert (total.seconds, total.evaluation_seconds) == (2 * (20 + 6 * 10) + 10, (2 * 6 + 1) * 2.0)
    assert total.process_seconds == total.seconds + total.evaluation_seconds


def test_time_of_evaluations_is_not_counted_as_that_of_the_training_before_them(report: Report) -> None:
    found = {one.label: (one.seconds, one.evaluation_seconds) for one in report.costs.kinds}
    assert found == {"pretrain": (2 * (20 + 30), 12.0), "sft": (60.0, 12.0), "rl": (10.0, 2.0)}


def test_a_line_that_a_kill_has_cut_is_named_and_hides_no_other(tmp_path: Path) -> None:
    plan = write_study(tmp_path, seeds=1, items=5)
    folder = tmp_path / "runs" / "stages" / "sft-shq_on_ldq-0"
    run = {
        "started": "2026-01-01T00:00:00+00:00",
        "begins_at_step": 0,
        "begins_from": None,
        "code": {"version": "1", "sha256": "a" * 64, "files": 1, "commit": None, "changed": None},
        "versions": {},
        "hardware": {"gpus": ["GPU 7"]},
        "layout": {"world_size": 4},
        "backend": "local",
    }
    (folder / "runs.jsonl").write_text(json.dumps(run) + '\n{"started": "2026-')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, ')
    report = make_report(plan, command="x")
    assert report.provenance.hardware == ("GPU 7",)
    assert report.provenance.code == {folder.name: "megatron-ext 1, sha256 aaaaaaaaaaaa"}
    assert next(one.processes for one in report.costs.stages if one.stage_id == folder.name) == 4
    assert report.provenance.unknown == (
        f"{folder / 'metrics.jsonl'}: 1 of 11 lines cannot be read: cut by a kill",
        f"{folder / 'runs.jsonl'}:2: cannot be read: cut by a kill, or of another version",
    )


def test_an_arm_reads_what_its_stages_ledgers_say(report: Report) -> None:
    reading = next(one for one in report.readings if one.arm == "lmq-shq-grpo")
    assert [(one.stage, one.state) for one in reading.stages] == [
        ("pretrain", "finished"),
        ("pretrain", "finished"),
        ("sft", "finished"),
        ("rl", "finished"),
    ]
    first = reading.stages[0]
    assert [(one.source, one.tokens, one.passes, one.first_tokens) for one in first.sources] == [
        ("web", 1_000, 0.5, 1_000),
        ("traces", 1_000, 1.5, 1_000),
    ]
    assert first.shared_with == ("base-shq", "ldq-shq", "lmq-shq")


def test_contamination_is_the_evaluations_own(report: Report) -> None:
    found = {(one.stage, one.task): set(one.statuses.values()) for one in report.contamination}
    assert found["sft", "sums"] == {"clean"}
    assert found["sft", "words"] == {"unknown"}
    cells = {cell.metric: cell.contamination for cell in report.rows[0].cells}
    assert (cells["average"], cells["math"]) == ("unknown", "clean")  # the worst of their tasks


def test_the_graph_has_each_stage_once(report: Report) -> None:
    found = {one.label: (one.parent, one.finished, one.seeds, one.evaluated) for one in report.graph}
    assert len(found) == 8
    assert found["first"] == (None, 2, 2, 0)
    assert found["lmq-shq"] == ("pretrain-lmq-0", 2, 2, 2)
    assert found["lmq-shq-grpo"] == ("sft-shq_on_lmq-0", 1, 2, 1)


def test_a_report_of_nothing_says_not_run_everywhere(tmp_path: Path) -> None:
    plan = study_plan(tmp_path / "runs", seeds=1)
    report = make_report(plan, command="x")
    assert {cell.state for row in report.rows for cell in row.cells} == {"not run"}
    assert {cell.metric for row in report.rows for cell in row.cells} >= {"average", "math", "general", "sums", "words"}
    assert {one.verdict for one in report.findings} == {"not run"}
    assert [one.best for one in report.headlines] == [None, None, None]
    assert all(one.tokens is None for one in report.costs.stages)
    assert len(report.missing) == len(plan.stages) + len(plan.evaluations)


def test_the_report_is_read_back_from_its_json(report: Report) -> None:
    text = report.model_dump_json()
    assert Report.model_validate_json(text) == report
    assert json.loads(text)["schema_version"] == 1


def test_a_report_made_twice_has_the_same_numbers(report: Report, folder: Path) -> None:
    again = make_report(study_plan(folder / "runs", seeds=2), command="megatron-ext study report toy.yaml")
    assert again.rows == report.rows
    assert again.findings == report.findings
