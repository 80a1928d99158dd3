"""What of a study goes into the queue of a real Slurm, behind what, and never twice. Nothing here runs: all is held."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_tools.errors import SetupError
from megatron_ext.recipe.site_schema import SlurmRecipe
from megatron_ext.study.launcher import Launched, read_launched
from megatron_ext.study.slurm import SlurmLauncher
from megatron_ext.study.slurm_arrays import job_name
from megatron_ext.study.slurm_jobs import SlurmJobs
from megatron_ext.study.study_plan import StudyPlan
from megatron_ext.study.tasks import make_task, nodes_of
from tests.support.slurm import PrivateSlurm, private_slurm
from tests.support.stand_in_study import stand_in_plan

pytestmark = [pytest.mark.slow, pytest.mark.system]

HELD = SlurmRecipe(options=("hold",))


@pytest.fixture(scope="module")
def started() -> Iterator[PrivateSlurm]:
    with private_slurm() as slurm:
        yield slurm


@pytest.fixture
def slurm(started: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateSlurm]:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, started.environment[name])
    yield started
    for job in {job.partition("_")[0] for job, _ in started.queue()}:
        started.run("scancel", job)
    started.wait_for("the queue is empty", lambda: not started.queue())


def two_seeds(run_root: Path) -> StudyPlan:
    """a -> b, each with two seeds, and c, with two seeds of one parent, behind the first b."""
    plan = stand_in_plan(run_root, {"a": None, "b": "a", "c": "b"})
    stages = []
    for stage in plan.stages:
        for seed in (0, 1):
            parent = stage.parent and f"{stage.parent}{0 if stage.recipe == 'c.yaml' else seed}"
            changed = {"stage_id": f"{stage.stage_id}{seed}", "replicate": seed, "parent": parent}
            stages.append(stage.model_copy(update=changed))
    return plan.model_copy(update={"stages": tuple(stages)})


def launch(plan: StudyPlan, run_root: Path, *, only: str = "abc", site: SlurmRecipe = HELD) -> list[str]:
    """Launches stages whose letter is named; the lines that it says."""
    said: list[str] = []
    tasks = [make_task(plan, node, run_root) for node in nodes_of(plan) if node.stage_id[9] in only]
    SlurmLauncher(run_root, plan, site, "site.yaml", said.append).launch(tasks)
    return said


def finish(run_root: Path, stage: str) -> None:
    folder = run_root / "stages" / stage
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text("{}")


def dependencies(slurm: PrivateSlurm, plan: StudyPlan, run_root: Path) -> dict[str, str]:
    """What each node waits for, as Slurm has it."""
    jobs = {}
    for node in nodes_of(plan):
        task = make_task(plan, node, run_root)
        launched = read_launched(task.folder)
        if launched is not None:
            found = slurm.job(str(launched.handle["job"]))["Dependency"].partition("(")[0]
            jobs[task.name.removeprefix("pretrain-")] = found
    return jobs


def number(slurm: PrivateSlurm, stage: str) -> str:
    """The array that holds a stage."""
    lines = slurm.run("squeue", "--noheader", "--format=%F %j").splitlines()
    return next(line.split()[0] for line in lines if f"{stage}:" in line)


def test_seeds_wait_for_their_own_parents_and_two_of_one_parent_for_that(slurm: PrivateSlurm, tmp_path: Path) -> None:
    plan = two_seeds(tmp_path)
    launch(plan, tmp_path)
    a, b = number(slurm, "pretrain-a0"), number(slurm, "pretrain-b0")
    assert dependencies(slurm, plan, tmp_path) == {
        "a0": "",
        "a1": "",
        "b0": f"aftercorr:{a}_*",
        "b1": f"aftercorr:{a}_*",
        "c0": f"aftercorr:{b}_*",
        "c1": f"afterok:{b}_0",
    }


def test_finished_parents_are_not_waited_for(slurm: PrivateSlurm, tmp_path: Path) -> None:
    plan = two_seeds(tmp_path)
    finish(tmp_path, "pretrain-a0")
    finish(tmp_path, "pretrain-a1")
    launch(plan, tmp_path, only="b")
    assert dependencies(slurm, plan, tmp_path) == {"b0": "", "b1": ""}


def test_a_parent_that_finishes_before_its_child_is_submitted_is_not_waited_for(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    plan = two_seeds(tmp_path)
    tasks = [make_task(plan, node, tmp_path) for node in nodes_of(plan) if node.stage_id == "pretrain-b1"]
    assert tasks[0].after == ("pretrain-a1",)
    finish(tmp_path, "pretrain-a1")
    SlurmLauncher(tmp_path, plan, HELD, "site.yaml", lambda _: None).launch(tasks)
    assert dependencies(slurm, plan, tmp_path) == {"b1": ""}


def test_of_seeds_only_those_wait_whose_parents_are_not_finished(slurm: PrivateSlurm, tmp_path: Path) -> None:
    plan = two_seeds(tmp_path)
    finish(tmp_path, "pretrain-a0")
    tasks = [make_task(plan, node, tmp_path) for node in nodes_of(plan) if node.stage_id != "pretrain-a0"]
    SlurmLauncher(tmp_path, plan, HELD, "site.yaml", lambda _: None).launch(tasks)
    found = dependencies(slurm, plan, tmp_path)
    assert found["b0"] == ""
    assert found["b1"] == f"aftercorr:{number(slurm, 'pretrain-a1')}_*"


def test_what_is_left_out_is_neither_waited_for_nor_submitted(slurm: PrivateSlurm, tmp_path: Path) -> None:
    said = launch(two_seeds(tmp_path), tmp_path, only="bc")
    assert said[0] == "not submitted  pretrain-b0: pretrain-a0 is neither finished nor in the queue"
    assert len(said) == 4
    assert not slurm.queue()


def test_two_who_submit_at_once_submit_each_node_once(slurm: PrivateSlurm, tmp_path: Path) -> None:
    plan = two_seeds(tmp_path)
    with ThreadPoolExecutor(4) as people:
        said = list(people.map(lambda _: launch(plan, tmp_path), range(4)))
    assert sorted(len(lines) for lines in said) == [0, 0, 0, 6]
    assert len(slurm.queue()) == 6


def test_what_another_study_has_queued_is_found_and_waited_for(slurm: PrivateSlurm, tmp_path: Path) -> None:
    plan = two_seeds(tmp_path)
    launch(plan, tmp_path, only="a")
    other = plan.model_copy(update={"name": "other"})
    said = launch(other, tmp_path, only="ab")
    assert [line.split()[2] for line in said] == ["pretrain-b0", "pretrain-b1"]
    record = json.loads((tmp_path / "studies/other/nodes/pretrain-a1/launch.json").read_text())
    assert record["handle"]["job"] == f"{number(slurm, 'pretrain-a0')}_1"
    assert dependencies(slurm, other, tmp_path)["b0"] == f"aftercorr:{number(slurm, 'pretrain-a0')}_*"


def test_what_waits_for_a_failed_parent_is_submitted_anew_behind_the_parents_new_job(
    slurm: PrivateSlurm, tmp_path: Path
) -> None:
    """Slurm takes such a job out of the queue some time later; here it is told never to, so that there is time."""
    plan = two_seeds(tmp_path)
    failed = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 5").strip()
    slurm.wait_for("it has failed", lambda: slurm.job(failed)["JobState"] == "FAILED")
    [task] = [make_task(plan, node, tmp_path) for node in nodes_of(plan) if node.stage_id == "pretrain-b0"]
    options = ["--array=0", f"--dependency=afterok:{failed}", "--kill-on-invalid-dep=no", "--output=/dev/null"]
    named = f"--job-name={job_name({0: task}, tmp_path)}"
    old = slurm.run("sbatch", "--parsable", named, *options, "--wrap=true").strip()
    reason = lambda: slurm.run("squeue", "--noheader", "--format=%r", f"--jobs={old}").strip()  # noqa: E731
    slurm.wait_for("Slurm has seen that", lambda: reason() == "DependencyNeverSatisfied")
    said = launch(plan, tmp_path, only="ab")
    assert said[0] == f"cancelled {f'{old}_0':>8}  pretrain-b0: what it waited for has failed"
    assert len(said) == 5
    assert dependencies(slurm, plan, tmp_path)["b0"] == f"aftercorr:{number(slurm, 'pretrain-a0')}_*"
    assert old not in {job.partition("_")[0] for job, _ in slurm.queue()}


def test_of_a_job_that_just_ends_it_is_waited_for_whether_it_goes_back_to_the_queue(
    slurm: PrivateSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue is a program that says COMPLETING once and asks the real one from then on."""
    plan = two_seeds(tmp_path)
    [task] = [make_task(plan, node, tmp_path) for node in nodes_of(plan) if node.stage_id == "pretrain-a0"]
    ending = f"77|0|COMPLETING|me|None|n7|{job_name({0: task}, tmp_path)}"
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    flag, real = tmp_path / "asked", shutil.which("squeue")
    once = f"if mkdir {flag} 2> /dev/null; then echo '{ending}'; else exec {real} \"$@\"; fi"
    program.write_text(f"#!/bin/bash\n{once}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    said = launch(plan, tmp_path, only="a")
    assert [line.split()[2] for line in said] == ["pretrain-a0", "pretrain-a1"]


def test_a_queue_of_another_run_root_is_not_this_ones(slurm: PrivateSlurm, tmp_path: Path) -> None:
    for run_root in (tmp_path / "one", tmp_path / "two"):
        assert len(launch(two_seeds(run_root), run_root)) == 6
    assert len(slurm.queue()) == 12


def test_what_slurm_refuses_is_shown_with_the_file_that_asks_for_it(slurm: PrivateSlurm, tmp_path: Path) -> None:
    with pytest.raises(SetupError) as error:
        launch(two_seeds(tmp_path), tmp_path, site=SlurmRecipe(partition="none"))
    assert "invalid partition specified: none" in str(error.value)
    assert "what it asks for stands in site.yaml under slurm" in str(error.value)


def test_cancel_takes_what_waits_out_of_the_queue(slurm: PrivateSlurm, tmp_path: Path) -> None:
    plan = two_seeds(tmp_path)
    launch(plan, tmp_path)
    tasks = {task.name: task for task in (make_task(plan, node, tmp_path) for node in nodes_of(plan))}
    launched = {name: one for name in ("pretrain-b0", "pretrain-c1") if (one := read_launched(tasks[name].folder))}
    launcher = SlurmJobs(tmp_path)
    assert {job.status for job in launcher.poll(launched).values()} == {"queued"}
    launcher.cancel(launched, now=False)
    assert {job.status for job in launcher.poll(launched).values()} == {"gone"}
    assert len(slurm.queue()) == 4


def test_of_a_node_that_is_gone_slurms_last_word_on_this_start_is_told(slurm: PrivateSlurm, tmp_path: Path) -> None:
    log = tmp_path / "5_0.log"
    launched = {"a": Launched("slurm", 1, 0.0, (), {"job": "5_0", "log": str(log)})}
    notes = []
    for line in (
        "study: begins, and writes attempt_1.log",
        "slurmstepd-n7: error: *** JOB 5 ON n7 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***",
        "study: begins, and writes attempt_2.log",
        "slurmstepd-n7: error: *** JOB 5 ON n7 CANCELLED AT 2026-01-02T00:00:00 DUE TO TIME LIMIT ***",
    ):
        with log.open("a") as file:
            file.write(f"{line}\n")
        notes.append(SlurmJobs(tmp_path).poll(launched)["a"].note)
    assert notes[2] == "job 5_0"
    assert notes[3] == "job 5_0: JOB 5 ON n7 CANCELLED AT 2026-01-02T00:00:00 DUE TO TIME LIMIT"
