"""A study as jobs of a real Slurm: in order, with seeds, failing, out of time, killed, cancelled, submitted again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.ranks import rank_of
from tests.support.slurm import PrivateSlurm, private_slurm
from tests.support.slurm_study import SlurmStudy, add_slurm_studies
from tests.support.toy_project import Run, environment
from tests.support.toy_study import ToyStudy, make_toy_study

pytestmark = [pytest.mark.slow, pytest.mark.system]

LONG_ARM = ("--arms", "long")
TWO_RANKS = ", ranks_per_node: 2, pretrain: {nodes: 1}"


@pytest.fixture(scope="module")
def slurm() -> Iterator[PrivateSlurm]:
    with private_slurm(cpus=4, nodes=2) as started:
        started.environment.update(environment() | started.environment | {"PYTHONPATH": environment()["PYTHONPATH"]})
        yield started


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ToyStudy:
    study = make_toy_study(tmp_path_factory.mktemp("a project") / "of us")  # with a space, as folders have
    add_slurm_studies(study)
    return study


@pytest.fixture(scope="module")
def undisturbed(project: ToyStudy, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The long stage, trained by two ranks to its end."""
    run = project.project.run(tmp_path_factory.mktemp("undisturbed"), processes=2, recipe=Path("long_stage.yaml"))
    assert run.code == 0, run.output
    return run


@pytest.fixture
def run_root(slurm: PrivateSlurm, tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "runs of it"
    for job in {job.partition("_")[0] for job, _ in slurm.queue()}:
        slurm.run("scancel", "--signal=KILL", "--full", job)
        slurm.run("scancel", job)
    slurm.wait_for("the queue is empty", lambda: not slurm.queue())


def long_study(slurm: PrivateSlurm, project: ToyStudy, run_root: Path, *, more: str = TWO_RANKS) -> SlurmStudy:
    return SlurmStudy.make(slurm, project.root, "long.yaml", run_root, more=more)


def test_jobs_wait_for_their_parents_seeds_share_an_array_and_a_failure_stops_what_stands_behind_it_alone(
    slurm: PrivateSlurm, project: ToyStudy, run_root: Path
) -> None:
    study = SlurmStudy.make(slurm, project.root, "two.yaml", run_root)
    jobs = study.submit()
    numbers = {job.partition("_")[0] for job in jobs.values()}
    assert sorted(jobs.values()) == sorted(f"{number}_{seed}" for number in numbers for seed in (0, 1))
    assert len(numbers) == 6
    waiting = [slurm.job(job)["Dependency"].partition(":")[0] for job in jobs.values() if job.endswith("_0")]
    assert sorted(waiting) == ["(null)", "(null)", *["aftercorr"] * 4]
    assert study.submit() == {}  # nothing twice
    states = study.states()
    assert set(states.values()) <= {"queued", "running"}
    study.wait_until_over()
    states = study.states()
    status = study.status()
    ended = {name: (slurm.job(job)["JobState"], states[name]) for name, job in jobs.items()}
    assert sorted(ended.values()) == sorted(
        [("COMPLETED", "finished")] * 6 + [("FAILED", "failed")] * 2 + [("CANCELLED", "blocked")] * 4
    )
    failed = [name for name, state in states.items() if state == "failed"]
    for name in failed:
        assert "exit code 5" in str(status[name]["reason"])
        assert f"job {jobs[name]}" in str(status[name]["reason"])
    again = study.submit()  # what failed, and what stands behind it
    assert sorted(again) == sorted(name for name, state in states.items() if state in ("failed", "blocked"))


def test_at_the_time_limit_a_run_on_two_nodes_saves_goes_back_to_the_queue_and_ends_as_one_that_was_left_alone(
    slurm: PrivateSlurm, project: ToyStudy, run_root: Path, undisturbed: Run
) -> None:
    """Slurm looks at time limits twice a minute; the run stands still until it has."""
    more = ', save_s: 120, pretrain: {nodes: 2, time: "3"}'
    study = long_study(slurm, project, run_root, more=more)
    stage, job = next(iter(study.submit(*LONG_ARM).items()))
    with study.held(stage, after_step=3) as processes:
        assert len(processes) == 2
        assert slurm.job(job)["NumNodes"] == "2"
        slurm.wait_for("it is told", lambda: "told to save, for the time limit is near" in study.attempt(stage, 1))
    study.wait_until_over(job)
    steps = study.attempt(stage, 1)
    assert "stopped by SIGTERM after step" in steps
    assert "back to the queue: the time limit is near" in steps
    assert "goes on at step" in study.attempt(stage, 2)
    assert (slurm.job(job)["Restarts"], slurm.job(job)["JobState"]) == ("1", "COMPLETED")
    assert stage_file(study, stage) == (undisturbed.stage_folder / "stage.json").read_bytes()


def test_a_killed_rank_sends_the_job_back_to_the_queue(
    slurm: PrivateSlurm, project: ToyStudy, run_root: Path, undisturbed: Run
) -> None:
    study = long_study(slurm, project, run_root)
    stage, job = next(iter(study.submit(*LONG_ARM).items()))
    with study.held(stage, after_step=22) as processes:
        os.kill(processes[0], signal.SIGKILL)
    study.wait_until_over(job)
    assert "back to the queue: a process was killed" in study.attempt(stage, 1)
    assert "goes on at step 20" in study.attempt(stage, 2)
    assert slurm.job(job)["Restarts"] == "1"
    assert stage_file(study, stage) == (undisturbed.stage_folder / "stage.json").read_bytes()


def test_a_rank_on_another_node_that_stands_still_is_named_and_sends_the_job_back_to_the_queue(
    slurm: PrivateSlurm, project: ToyStudy, run_root: Path, undisturbed: Run
) -> None:
    study = long_study(slurm, project, run_root, more=", pretrain: {nodes: 2}")
    with study.site.open("a") as site:
        site.write("timeouts: {step_s: 30, start_s: 300}\n")
    stage, job = next(iter(study.submit(*LONG_ARM).items()))
    with study.held(stage, after_step=22) as processes:
        [rank_0] = [process for process in processes if rank_of(process) == 0]
        os.kill(rank_0, signal.SIGCONT)
        slurm.wait_for("it is given up", lambda: "back to the queue" in study.attempt(stage, 1))
    study.wait_until_over(job)
    said = study.attempt(stage, 1)
    assert "error: another rank was lost. No sign of rank 1 (" in said
    assert "back to the queue: a rank was lost" in said
    assert "goes on at step 20" in study.attempt(stage, 2)
    assert (slurm.job(job)["Restarts"], slurm.job(job)["JobState"]) == ("1", "COMPLETED")
    assert stage_file(study, stage) == (undisturbed.stage_folder / "stage.json").read_bytes()


def test_when_one_of_two_tasks_is_killed_the_job_goes_back_to_the_queue(
    slurm: PrivateSlurm, project: ToyStudy, run_root: Path, undisturbed: Run
) -> None:
    """The rank and the torchrun above it, at once."""
    study = long_study(slurm, project, run_root, more=", pretrain: {nodes: 2}")
    stage, job = next(iter(study.submit(*LONG_ARM).items()))
    with study.held(stage, after_step=22) as processes:
        [rank_1] = [process for process in processes if rank_of(process) == 1]
        torchrun = int(Path(f"/proc/{rank_1}/stat").read_text().rpartition(") ")[2].split()[1])
        os.kill(torchrun, signal.SIGKILL)
        os.kill(rank_1, signal.SIGKILL)
    study.wait_until_over(job)
    assert "back to the queue: a process was killed" in study.attempt(stage, 1)
    assert "goes on at step 20" in study.attempt(stage, 2)
    assert (slurm.job(job)["Restarts"], slurm.job(job)["JobState"]) == ("1", "COMPLETED")
    assert stage_file(study, stage) == (undisturbed.stage_folder / "stage.json").read_bytes()


@pytest.mark.skipif(
    find_spec("nvidia_resiliency_ext") is None,
    reason="not run: nvidia-resiliency-ext is not installed (extra `resiliency`; wheels need glibc 2.39)",
)
def test_ranks_that_all_stand_still_are_killed_after_hang_s_and_the_job_goes_back_to_the_queue(
    slurm: PrivateSlurm, project: ToyStudy, run_root: Path, undisturbed: Run
) -> None:
    study = long_study(slurm, project, run_root, more=f"{TWO_RANKS}, hang_s: 60")
    stage, job = next(iter(study.submit(*LONG_ARM).items()))
    with study.held(stage, after_step=22):
        slurm.wait_for("it is killed", lambda: "back to the queue" in study.attempt(stage, 1))
    study.wait_until_over(job)
    assert "Did not get subsequent heartbeat. Waited 60.00 seconds." in study.attempt(stage, 1)
    assert "back to the queue: a process was killed" in study.attempt(stage, 1)
    assert "goes on at step 20" in study.attempt(stage, 2)
    assert (slurm.job(job)["Restarts"], slurm.job(job)["JobState"]) == ("1", "COMPLETED")
    assert stage_file(study, stage) == (undisturbed.stage_folder / "stage.json").read_bytes()


def test_when_its_node_is_lost_a_job_goes_on_on_another_one(
    slurm: PrivateSlurm, project: ToyStudy, run_root: Path, undisturbed: Run
) -> None:
    study = long_study(slurm, project, run_root)
    stage, job = next(iter(study.submit(*LONG_ARM).items()))
    with study.held(stage, after_step=22):
        node = slurm.job(job)["NodeList"]
        slurm.lose(node)
    try:
        study.wait_until_over(job)
        assert slurm.job(job)["NodeList"] != node
    finally:
        slurm.bring_back(node)
    assert slurm.job(job)["Restarts"] == "1"
    assert "goes on at step 20" in study.attempt(stage, 2)
    assert stage_file(study, stage) == (undisturbed.stage_folder / "stage.json").read_bytes()


def test_cancel_saves_first_and_the_next_run_submits_what_is_left(
    slurm: PrivateSlurm, project: ToyStudy, run_root: Path
) -> None:
    study = long_study(slurm, project, run_root)
    jobs = study.submit(*LONG_ARM)
    stage, evaluation = jobs
    with study.held(stage, after_step=3):
        slurm.run("scancel", jobs[evaluation])  # by hand, while it waits
        slurm.wait_for("it is gone", lambda: jobs[evaluation] not in dict(slurm.queue()))
        assert study.states(*jobs) == {stage: "running", evaluation: "waiting"}
        again = study.submit(*LONG_ARM)
        assert list(again) == [evaluation]
        assert study.states(*jobs) == {stage: "running", evaluation: "queued"}
        assert study.submit(*LONG_ARM) == {}
        before = study.steps(stage)
    study.study("cancel")
    assert not slurm.queue()
    assert study.states(*jobs) == {stage: "stopped", evaluation: "stopped"}
    steps = study.steps(stage)
    assert before <= steps < 40
    assert (study.stage(stage) / "checkpoints" / f"step_{steps}").is_dir()
    assert list(study.submit(*LONG_ARM)) == [stage, evaluation]
    study.wait_until_over()
    assert f"goes on at step {steps}" in study.attempt(stage, 2)
    assert study.states(*jobs) == {stage: "finished", evaluation: "finished"}


def stage_file(study: SlurmStudy, stage: str) -> bytes:
    return (study.stage(stage) / "stage.json").read_bytes()
