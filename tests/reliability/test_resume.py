"""A run that was interrupted ends bit for bit like one that was not."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.toy_project import REPOSITORY, Run, ToyProject, environment

OVERLAP = (
    "parallel.use_distributed_optimizer=true",
    "parallel.overlap_grad_reduce=true",
    "parallel.overlap_param_gather=true",  # weights lie in parts between steps, and are saved whole
)
CASES: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "fp32": (None, ()),
    "bf16": (None, ("precision=bf16",)),
    "dp2-distributed-optimizer": (2, ("parallel.use_distributed_optimizer=true",)),
    "dp2-overlap": (2, OVERLAP),
    "tp2-sequence-parallel": (2, ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")),
}

LONG = ("budget.tokens=15_360", "checkpoint.interval_tokens=5_120", "training.validation_interval_tokens=15_360")
"""30 steps with a checkpoint every 10: long enough to be interrupted in the middle on a busy machine."""


@pytest.fixture(scope="module")
def undisturbed(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = toy_project.run(tmp_path_factory.mktemp("undisturbed"), *LONG)
    assert run.code == 0, run.output
    return run


@pytest.mark.parametrize("name", CASES)
def test_a_cut_run_goes_on_bit_for_bit(toy_project: ToyProject, toy_run: Run, tmp_path: Path, name: str) -> None:
    processes, overrides = CASES[name]
    is_known = (processes, overrides) == (None, ())
    whole = toy_run if is_known else toy_project.run(tmp_path / "whole", *overrides, processes=processes)
    cut = toy_project.run(tmp_path / "cut", *overrides, "training.max_steps=3", processes=processes)
    assert (whole.code, cut.code) == (0, 0), whole.output + cut.output
    assert len(cut.losses) == 3
    assert not (cut.stage_folder / "stage.json").exists()
    rest = toy_project.run(tmp_path / "cut", *overrides, processes=processes)
    assert rest.code == 0, rest.output
    assert rest.losses == whole.losses
    assert [line["grad_norm"] for line in rest.metrics] == [line["grad_norm"] for line in whole.metrics]
    assert (rest.stage_folder / "stage.json").read_bytes() == (whole.stage_folder / "stage.json").read_bytes()


@pytest.mark.parametrize(("name", "signals"), [("SIGTERM", [signal.SIGTERM] * 2), ("SIGINT", [signal.SIGINT])])
def test_a_signal_finishes_the_step_saves_and_says_so(
    toy_project: ToyProject, undisturbed: Run, tmp_path: Path, name: str, signals: list[signal.Signals]
) -> None:
    process = start(toy_project, tmp_path)
    wait_for_step(process, tmp_path, 2)
    for each in signals:  # Slurm and torchrun both forward: one request can come twice
        process.send_signal(each)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 5, output
    check_stopped(toy_project, undisturbed, tmp_path, output, name)


def test_sigterm_to_torchrun_stops_all_ranks_after_one_step(
    toy_project: ToyProject, undisturbed: Run, tmp_path: Path
) -> None:
    process = start(toy_project, tmp_path, processes=2)
    wait_for_step(process, tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    stopped = Run(code=5, output=output, run_root=tmp_path)
    assert json.loads((stopped.stage_folder / "exit.json").read_text())["code"] == 5, output
    assert (stopped.stage_folder / "checkpoints" / f"step_{len(stopped.losses)}").is_dir()
    rest = toy_project.run(tmp_path, *LONG, processes=2)
    assert rest.code == 0, rest.output
    assert rest.losses == pytest.approx(undisturbed.losses, rel=1e-5)


def check_stopped(project: ToyProject, undisturbed: Run, run_root: Path, output: str, name: str) -> None:
    """A stopped run said so, saved its last step, and goes on to the losses of one that was not stopped."""
    stopped = Run(code=5, output=output, run_root=run_root)
    steps = len(stopped.losses)
    assert 2 <= steps < 30
    assert f"stopped by {name} after step {steps} of 30" in output
    ending = json.loads((stopped.stage_folder / "exit.json").read_text())
    assert ending["code"] == 5
    assert (stopped.stage_folder / "checkpoints" / f"step_{steps}").is_dir()
    rest = project.run(run_root, *LONG)
    assert rest.code == 0, rest.output
    assert f"goes on at step {steps}" in rest.output
    assert rest.losses == undisturbed.losses


def test_kill_minus_nine_loses_at_most_the_steps_since_the_checkpoint(
    toy_project: ToyProject, undisturbed: Run, tmp_path: Path
) -> None:
    process = start(toy_project, tmp_path)
    wait_for_step(process, tmp_path, 12)  # behind the checkpoint of step 10
    process.kill()
    process.communicate(timeout=60)  # returns only when no orphan holds the pipe
    rest = toy_project.run(tmp_path, *LONG)
    assert rest.code == 0, rest.output
    assert "goes on at step 10" in rest.output
    assert [line["step"] for line in rest.metrics] == list(range(1, 31))
    assert rest.losses == undisturbed.losses
    of_both = [run.stage_folder / "checkpoints" / "step_30" / "ledger.json" for run in (rest, undisturbed)]
    assert of_both[0].read_bytes() == of_both[1].read_bytes()


def test_a_half_written_checkpoint_is_never_taken(toy_project: ToyProject, undisturbed: Run, tmp_path: Path) -> None:
    cut = toy_project.run(tmp_path, *LONG, "training.max_steps=3")
    half = cut.stage_folder / "checkpoints" / ".writing_step_9"
    half.mkdir()
    (half / "plan.json").write_text("{")
    rest = toy_project.run(tmp_path, *LONG)
    assert rest.code == 0, rest.output
    assert not half.exists()
    assert rest.losses == undisturbed.losses


def test_a_finished_stage_is_not_trained_again(toy_project: ToyProject, undisturbed: Run) -> None:
    before = (undisturbed.stage_folder / "metrics.jsonl").read_bytes()
    again = toy_project.run(undisturbed.run_root, *LONG)
    assert again.code == 0, again.output
    assert "finished before" in again.output
    assert (undisturbed.stage_folder / "metrics.jsonl").read_bytes() == before


def test_old_checkpoints_are_removed(undisturbed: Run, toy_project: ToyProject, tmp_path: Path) -> None:
    folders = sorted(path.name for path in (undisturbed.stage_folder / "checkpoints").iterdir())
    assert folders == ["step_20", "step_30"]
    kept = toy_project.run(
        tmp_path, "checkpoint.interval_tokens=512", "checkpoint.keep_last=1", "checkpoint.keep_every_tokens=2048"
    )
    assert kept.code == 0, kept.output
    assert sorted(path.name for path in (kept.stage_folder / "checkpoints").iterdir()) == [
        "step_10",
        "step_4",
        "step_8",
    ]


def test_two_runs_of_one_stage_at_once_are_refused(toy_project: ToyProject, tmp_path: Path) -> None:
    cut = toy_project.run(tmp_path, "training.max_steps=1")
    with (cut.stage_folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a run does for as long as it lives
        second = toy_project.run(tmp_path)
    assert second.code == 4
    assert "another process is training this stage" in second.output
    assert len(second.losses) == 1


def start(project: ToyProject, run_root: Path, *, processes: int | None = None) -> subprocess.Popen[str]:
    """Starts the long run and leaves it running."""
    return subprocess.Popen(
        project.command(run_root, *LONG, processes=processes),
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], run_root: Path, step: int) -> None:
    """Waits until metrics.jsonl tells of `step`."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        files = list(run_root.glob("stages/*/metrics.jsonl"))
        if files and files[0].read_text().count("\n") >= step:
            return
        time.sleep(0.005)
    process.terminate()
    pytest.fail(f"step {step} did not come within 90 s")
