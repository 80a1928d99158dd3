"""`megatron-ext study report` on a study that has run in part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.report.content import Report
from tests.support.study_on_disk import FOLDER, write_study
from tests.support.study_project import make_study_project


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study.json of a study with one seed, whose last stage has not run."""
    folder = tmp_path_factory.mktemp("study")
    file = folder / "study.json"
    file.write_text(write_study(folder, seeds=1, items=20, skip=["rl-grpo-0"]).to_json())
    return file


def test_the_page_goes_where_it_is_asked_to(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "report.html"
    assert main(["study", "report", str(study), "-o", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    size = f"{len(page.read_bytes()):,}"
    assert capsys.readouterr().out == f"{page}: {size} bytes; stages and evaluations that are not finished: 2 waiting\n"


def test_without_a_file_the_page_goes_to_the_study(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(study)]) == 0
    page = study.parent / "runs" / "studies" / "toy" / "report.html"
    assert page.is_file()
    assert capsys.readouterr().out.startswith(f"{page}: ")


@pytest.mark.parametrize(
    ("form", "begin"), [("md", "# Study toy\n"), ("csv", "arm,stage,metric,replicate,"), ("json", "{\n")]
)
def test_text_is_printed_where_no_file_is_named(
    study: Path, form: str, begin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "report", str(study), "--format", form]) == 0
    assert capsys.readouterr().out.startswith(begin)


def test_the_ending_of_the_file_says_the_form(study: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert main(["study", "report", str(study), "-o", str(file)]) == 0
    assert Report.model_validate_json(file.read_text()).study == "toy"


def test_another_run_root_has_other_results(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(study), "--run-root", str(tmp_path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["costs"]["total"]["tokens"] == 0


def test_arms_and_seeds_of_a_planned_study_cannot_be_chosen(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(study), "--seeds", "2"]) == 2
    expected = f"error: {study} is planned; --seeds, --arms and --site are of a study file.\n"
    assert capsys.readouterr().err == expected


def test_damaged_results_are_refused_and_not_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_study(tmp_path, seeds=1, items=5)
    study = tmp_path / "study.json"
    study.write_text(plan.to_json())
    results = tmp_path / "runs/stages/sft-shq_on_ldq-0/evaluations" / FOLDER / "results.json"
    results.write_text(results.read_text()[:100])
    assert main(["study", "report", str(study), "--format", "md"]) == 3
    said = capsys.readouterr().err
    assert f"error: {results}: damaged" in said
    assert said.endswith(f"remove the folder and evaluate again (of a study: study run does): rm -r {results.parent}\n")


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_items_that_cannot_be_read_are_refused_for_they_make_the_intervals(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_study(tmp_path, seeds=1, items=5)
    study = tmp_path / "study.json"
    study.write_text(plan.to_json())
    items = tmp_path / "runs/stages/sft-shq_on_ldq-0/evaluations" / FOLDER / "samples.jsonl.zst"
    content = items.read_bytes()
    items.unlink()
    if damage != "gone":
        items.write_bytes(content[:-1] if damage == "cut" else b"")
    assert main(["study", "report", str(study), "--format", "md"]) == 3
    said = capsys.readouterr().err
    assert f"error: {items}: cannot be read (" in said
    assert f"rm -r {items.parent}\n" in said


def test_a_study_file_is_planned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_study_project()
    assert main(["study", "report", "study.yaml", "--format", "json"]) == 0
    report = Report.model_validate_json(capsys.readouterr().out)
    assert [reading.arm for reading in report.readings] == ["plain", "plain-chat", "more", "more-chat"]
    assert report.costs.total.planned_tokens == sum(stage.planned_tokens for stage in report.costs.stages)
    assert len(report.costs.stages) == 5
    assert report.differences[0].startswith("data.repeated (pretrain): ")
    assert report.differences[0].endswith(". b is small")


def record(plan_seeds: int | None, *, arms: tuple[str, ...] = ()) -> Path:
    """What a run of the study of pencils leaves in its run root."""
    plan = make_study_plan("study.yaml", seeds=plan_seeds, arms=arms)
    file = Path(plan.run_root) / "studies" / plan.name / "study.json"
    file.parent.mkdir(parents=True)
    file.write_text(plan.to_json())
    return file


def test_a_study_file_is_reported_with_the_replicates_and_all_the_arms_of_its_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_study_project()
    file = record(3, arms=("plain",))
    assert main(["study", "report", "study.yaml", "--format", "json"]) == 0
    said = capsys.readouterr()
    report = Report.model_validate_json(said.out)
    assert [reading.arm for reading in report.readings] == ["plain", "plain-chat", "more", "more-chat"]
    assert {row.label: row.seeds_planned for row in report.rows}["plain"] == 3
    assert said.err == (
        f"WARNING: study.yaml asks for seeds of pretrain 1, and its runs had pretrain 3 ({file}): those of the runs "
        "are taken; --seeds N takes others\n"
    )


def test_seeds_that_are_asked_for_stand_over_those_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_study_project()
    record(3)
    assert main(["study", "report", "study.yaml", "--format", "json", "--seeds", "2"]) == 0
    report = Report.model_validate_json(capsys.readouterr().out)
    assert {row.seeds_planned for row in report.rows} == {2}


def test_status_shows_all_arms_after_a_run_of_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_study_project()
    record(2, arms=("more",))
    assert main(["study", "status", "study.yaml", "--json"]) == 0
    arms = json.loads(capsys.readouterr().out)["arms"]
    assert {arm["arm"]: len(arm["chains"]) for arm in arms} == dict.fromkeys(
        ["plain", "plain-chat", "more", "more-chat"], 2
    )


def test_the_record_of_a_run_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_study(tmp_path, seeds=1, items=5).model_copy(update={"run_root": "runs"})
    file = tmp_path / "runs" / "studies" / "toy" / "study.json"
    file.parent.mkdir(parents=True)
    file.write_text(plan.to_json())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["study", "report", "../runs/studies/toy/study.json", "--format", "json"]) == 0
    assert {row.seeds_run for row in Report.model_validate_json(capsys.readouterr().out).rows} == {1}


def test_a_run_root_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.json"
    file.write_text(write_study(tmp_path, seeds=1, items=5).model_copy(update={"run_root": "nowhere"}).to_json())
    assert main(["study", "report", str(file), "--format", "json"]) == 0
    assert "WARNING: nowhere, the run root that" in capsys.readouterr().err
