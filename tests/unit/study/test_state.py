"""The state of a node follows from its files and its processes; each test makes one situation."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.study.launcher import Launched, node_folder, read_launched, say_asked_to_stop, write_launched
from megatron_ext.study.launchers import finders
from megatron_ext.study.processes import identity_of
from megatron_ext.study.state import NodeState, node_states
from tests.support.stand_in_study import stage_id, stand_in_plan

A = stage_id("a")


class Place:
    """A run root in which a test puts what a situation leaves."""

    def __init__(self, run_root: Path) -> None:
        self.run_root = run_root
        self.plan = stand_in_plan(run_root)

    def states(self) -> dict[str, NodeState]:
        return node_states(self.plan, self.run_root, finders(self.run_root))

    def state(self, letter: str = "a") -> tuple[str, str]:
        found = self.states()[stage_id(letter)]
        return found.state, found.reason

    def stage(self, letter: str = "a") -> Path:
        folder = self.run_root / "stages" / stage_id(letter)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finish(self, letter: str = "a") -> None:
        (self.stage(letter) / "stage.json").write_text("{}")

    def exit(self, code: int, reason: str, message: str) -> None:
        ending = {"code": code, "reason": reason, "message": message}
        (self.stage() / "exit.json").write_text(json.dumps(ending))

    def launch(self, pid: int | None = None, *, log: str = "", attempt: int = 1) -> None:
        """A start of stage a by the study; of a process that is gone where no pid is given."""
        folder = node_folder(self.run_root, self.plan.name, A)
        folder.mkdir(parents=True, exist_ok=True)
        handle: dict[str, Any] = identity_of(pid or os.getpid())
        if pid is None:
            handle["start_ticks"] -= 1
        write_launched(folder, Launched(kind="local", attempt=attempt, at=0.0, handle=handle))
        (folder / f"attempt_{attempt}.log").write_text(log)

    def launched(self) -> Launched:
        """The start of stage a, as its launch.json has it."""
        found = read_launched(node_folder(self.run_root, self.plan.name, A))
        assert found is not None
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process.pid
    process.kill()
    process.wait()


def test_what_nobody_has_begun_waits(place: Place) -> None:
    assert {state.state for state in place.states().values()} == {"waiting"}


def test_a_stage_with_stage_json_is_finished_whatever_else_lies_there(place: Place, sleeper: int) -> None:
    place.launch(sleeper)
    place.exit(5, "TrainingError", "the loss is nan")
    place.finish()
    assert place.state() == ("finished", "")


def test_a_stage_whose_process_lives_runs(place: Place, sleeper: int) -> None:
    place.launch(sleeper)
    assert place.state() == ("running", "")
    assert place.states()[A].is_ours


def test_a_stage_whose_lock_is_held_runs_though_the_study_has_not_begun_it(place: Place) -> None:
    with (place.stage() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert place.state() == ("running", "begun by another command than this study's")
        assert not place.states()[A].is_ours
    assert place.state() == ("waiting", "")


def test_the_error_of_exit_json_is_the_reason(place: Place) -> None:
    place.launch(log="step 1\n")
    place.exit(5, "TrainingError", "step 7: the loss is nan\nits documents: …")
    assert place.state() == ("failed", "exit code 5: step 7: the loss is nan")


def test_a_stage_that_was_asked_to_stop_has_stopped_and_not_failed(place: Place) -> None:
    place.exit(5, "StoppedError", "stopped by SIGTERM after step 3 of 6")
    assert place.state() == ("stopped", "stopped by SIGTERM after step 3 of 6")


def test_a_stage_that_was_cut_never_finishes_so_it_has_failed(place: Place) -> None:
    place.exit(0, "cut", "cut at step 3 of 6 (training.max_steps)")
    assert place.state() == ("failed", "cut at step 3 of 6 (training.max_steps)")


def test_a_stage_whose_stage_json_was_removed_is_to_be_trained_on(place: Place) -> None:
    place.exit(0, "finished", "finished: checkpoints/step_6")
    assert place.state() == ("waiting", "")


def test_an_older_exit_json_says_nothing_of_a_newer_start(place: Place) -> None:
    place.exit(5, "StoppedError", "stopped by SIGTERM after step 3 of 6")
    time.sleep(0.01)
    place.launch(log="error: recipe.yaml: budget: 0\nmegatron_ext.run: exit code 2\nstudy: exit code 2\n", attempt=2)
    assert place.state() == ("failed", "exit code 2: recipe.yaml: budget: 0")
    assert place.states()[A].attempts == 2


def test_a_start_that_ended_without_a_word_has_failed_and_says_so(place: Place) -> None:
    place.launch(log="step 1/6  loss 3.2\n")
    state, reason = place.state()
    assert state == "failed"
    assert reason == "ended without a word: killed (out of memory?), or the machine went down"


def test_the_signal_that_killed_it_is_named(place: Place) -> None:
    place.launch(log="step 1/6\nstudy: exit code -9 (SIGKILL)\n")
    assert place.state() == ("failed", "killed by SIGKILL")


def test_a_start_that_the_study_asked_to_stop_has_stopped(place: Place) -> None:
    place.launch(log="step 1/6\n")
    say_asked_to_stop([place.launched()], "study cancel")
    assert place.state() == ("stopped", "asked to stop: study cancel")


def test_a_start_that_was_ended_at_once_is_not_said_to_have_saved(place: Place) -> None:
    place.launch(log="step 1/6\n")
    say_asked_to_stop([place.launched()], "study cancel --now", now=True)
    say_asked_to_stop([place.launched()], "the study got SIGTERM")  # the run, which cancel has told too
    with (node_folder(place.run_root, place.plan.name, A) / "attempt_1.log").open("a") as log:
        log.write("study: exit code -9 (SIGKILL)\n")
    assert place.state() == ("stopped", "ended at once: study cancel --now")


def test_a_start_that_has_left_no_log_counts_as_not_begun(place: Place) -> None:
    place.launch()
    (node_folder(place.run_root, place.plan.name, A) / "attempt_1.log").unlink()
    assert place.state() == ("waiting", "")


def test_a_traceback_gives_its_last_line(place: Place) -> None:
    place.launch(log="Traceback (most recent call last):\n  File …\nKeyError: 'x'\nstudy: exit code 1\n")
    assert place.state() == ("failed", "exit code 1: KeyError: 'x'")


def test_what_stands_behind_a_failed_stage_is_blocked_and_names_it(place: Place) -> None:
    place.exit(5, "TrainingError", "the loss is nan")
    assert place.state("b") == ("blocked", f"{A} failed")
    assert place.state("c") == ("blocked", f"{A} failed")
    assert place.state("e") == ("waiting", "")


def test_what_stands_behind_a_stopped_stage_waits(place: Place) -> None:
    place.exit(5, "StoppedError", "stopped by SIGTERM after step 3 of 6")
    assert place.state("b") == ("waiting", "")


def test_a_launch_json_that_was_cut_counts_as_none(place: Place) -> None:
    place.launch()
    (node_folder(place.run_root, place.plan.name, A) / "launch.json").write_text('{"kind": "lo')
    assert place.state() == ("waiting", "")


def test_without_squeue_a_job_is_taken_to_be_queued_and_all_else_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(place.run_root))
    folder = node_folder(place.run_root, place.plan.name, A)
    folder.mkdir(parents=True)
    write_launched(folder, Launched(kind="slurm", attempt=1, at=0.0, handle={"job": "12_0", "log": "12_0.log"}))
    place.finish("e")
    state, reason = place.state()
    assert state == "queued"
    assert reason == (
        "job 12_0 was submitted, and Slurm cannot be asked about it here: there is no squeue on this machine; "
        "if it is over: rm its launch.json"
    )
    assert place.state("e") == ("finished", "")
    assert place.state("b") == ("waiting", "")


def test_a_start_on_another_machine_is_taken_to_run_and_says_what_to_do(place: Place, sleeper: int) -> None:
    place.launch(sleeper)
    file = node_folder(place.run_root, place.plan.name, A) / "launch.json"
    said = json.loads(file.read_text())
    said["handle"] |= {"host": "gpu-7", "boot_id": "another"}
    file.write_text(json.dumps(said))
    state, reason = place.state()
    assert state == "running"
    assert "gpu-7" in reason
    assert not place.states()[A].is_ours  # it takes no worker and no GPU of this machine
