"""An arm runs as a recipe: its unfinished stages one after the other, each as if it were run alone.

common ─── sums_base ─── sft        arms/sums-sft.yaml
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.toy_project import Run, environment
from tests.support.toy_study import ToyStudy, make_toy_study

ARM = Path("arms/sums-sft.yaml")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> ToyStudy:
    return make_toy_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def whole(study: ToyStudy, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The arm run to its end by one command; nobody changes it."""
    run = run_arm(study, tmp_path_factory.mktemp("arm") / "runs")
    assert run.code == 0, run.output
    return run


def run_arm(study: ToyStudy, run_root: Path, *overrides: str, stage: str = "", processes: int | None = None) -> Run:
    flags = ("--stage", stage) if stage else ()
    return study.project.run(run_root, *overrides, recipe=ARM, flags=flags, processes=processes)


def ids(run: Run) -> list[str]:
    """The arm's stages, first to last, as the run says them."""
    return [line.partition(": ")[0] for line in run.output.splitlines() if " steps -> " in line]


def test_the_stages_end_as_they_do_when_each_is_run_by_itself(study: ToyStudy, whole: Run, tmp_path: Path) -> None:
    common, base, sft = ids(whole)
    for recipe, overrides in [
        ("common", ()),
        ("sums_base", (f"continue={common}",)),
        ("sft", (f"init_from={base}",)),
    ]:
        run = study.project.run(tmp_path, *overrides, recipe=Path(f"{recipe}.yaml"))
        assert run.code == 0, run.output
    for stage in (common, base, sft):
        by_itself = (tmp_path / "stages" / stage / "stage.json").read_bytes()
        assert (whole.run_root / "stages" / stage / "stage.json").read_bytes() == by_itself


def test_an_arm_that_is_finished_trains_nothing(study: ToyStudy, whole: Run) -> None:
    again = run_arm(study, whole.run_root)
    assert again.code == 0
    recipes = ["common.yaml", "sums_base.yaml", "sft.yaml"]
    assert again.output.splitlines() == [
        f"{stage}: finished before ({recipe})" for stage, recipe in zip(ids(whole), recipes, strict=True)
    ]


def test_only_the_unfinished_stages_are_trained(study: ToyStudy, whole: Run, tmp_path: Path) -> None:
    copy = whole.copied(tmp_path / "runs")
    *_, sft = ids(whole)
    shutil.rmtree(copy.run_root / "stages" / sft)
    again = run_arm(study, copy.run_root)
    assert again.code == 0, again.output
    assert ids(again) == [sft]
    assert f"stage 1 of 1: {sft} (sft.yaml)" in again.output
    ends = [(run.run_root / "stages" / sft / "stage.json").read_bytes() for run in (whole, copy)]
    assert ends[0] == ends[1]


def test_one_kind_of_stage_needs_those_before_it_and_says_that_the_arm_trains_them(
    study: ToyStudy, whole: Run, tmp_path: Path
) -> None:
    refused = run_arm(study, tmp_path / "runs", stage="sft")
    assert refused.code == 2
    assert f"{ids(whole)[1]} (sums_base.yaml) is not trained in" in refused.output
    assert "leave --stage out, and the arm trains it first" in refused.output
    assert not (tmp_path / "runs" / "stages").exists()


def test_a_kind_of_stage_that_the_arm_lacks_is_refused(study: ToyStudy, tmp_path: Path) -> None:
    refused = run_arm(study, tmp_path / "runs", stage="rl")
    assert refused.code == 2
    assert "--stage rl: arms/sums-sft.yaml has no such stage; there are: pretrain, sft" in refused.output


def test_what_a_later_stage_refuses_is_said_before_the_first_one_trains(study: ToyStudy, tmp_path: Path) -> None:
    root = tmp_path / "study"
    shutil.copytree(study.root, root, ignore=shutil.ignore_patterns("runs"))
    (root / "site.yaml").write_text(f"data_root: {root}/data\nrun_root: {root}/runs\n")
    (root / "sft.yaml").write_text((root / "sft.yaml").read_text() + "logging: {wandb_project: toy}\n")
    copy = ToyStudy(type(study.project)(root))
    refused = run_arm(copy, root / "runs")
    assert refused.code == 4
    assert "wandb is not installed" in refused.output
    assert not (root / "runs" / "stages").exists()


def test_a_stage_that_is_cut_ends_the_arm_and_says_what_is_not_begun(study: ToyStudy, tmp_path: Path) -> None:
    cut = run_arm(study, tmp_path, "training.max_steps=2")
    assert cut.code == 0
    assert cut.output.splitlines()[-1] == "WARNING: 2 stages behind it are not begun: they need it finished"
    assert len(list((tmp_path / "stages").glob("*"))) == 1


def test_two_ranks_join_again_for_each_stage_and_come_to_the_same_losses(
    study: ToyStudy, whole: Run, tmp_path: Path
) -> None:
    two = run_arm(study, tmp_path, processes=2)
    assert two.code == 0, two.output
    for stage in ids(whole):
        one, other = (
            json.loads((root / "stages" / stage / "stage.json").read_text()) for root in (whole.run_root, tmp_path)
        )
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["state"] == one["state"]


@pytest.mark.slow
@pytest.mark.system
def test_an_arm_that_is_stopped_in_its_second_stage_goes_on_there(study: ToyStudy, whole: Run, tmp_path: Path) -> None:
    common, base, _ = ids(whole)
    process = subprocess.Popen(
        study.project.command(tmp_path, processes=2, recipe=ARM),
        cwd=study.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = tmp_path / "stages" / base / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.is_file() or not metrics.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    ending = json.loads((tmp_path / "stages" / base / "exit.json").read_text())
    assert (ending["code"], ending["reason"]) == (5, "StoppedError"), output
    assert json.loads((tmp_path / "stages" / common / "exit.json").read_text())["reason"] == "finished"
    rest = run_arm(study, tmp_path)
    assert rest.code == 0, rest.output
    assert f"{common}: finished before (common.yaml)" in rest.output
    assert "goes on at step" in rest.output
