"""What `study cancel` cannot reach it leaves alone, and says so."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.errors import SetupError, UsageError
from megatron_ext.study.cancel import cancel_study
from megatron_ext.study.launcher import Launched, node_folder, write_launched
from megatron_ext.study.launchers import finders
from megatron_ext.study.processes import identity_of
from megatron_ext.study.slurm_jobs import SlurmJobs

ELSEWHERE = {"boot_id": "another", "host": "gpu-7", "pid": 4711}


def begin(run_root: Path, node: str, **changed: object) -> Path:
    """A node of study s that this test's process runs, but for what is changed of its identity; gives its log."""
    folder = node_folder(run_root, "s", node)
    folder.mkdir(parents=True)
    write_launched(folder, Launched("local", 1, 0.0, handle=identity_of(os.getpid()) | changed))
    log = folder / "attempt_1.log"
    log.write_text("step 1\n")
    return log


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of a session of its own."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("now", [False, True])
def test_a_node_on_another_machine_is_left_alone_and_named(tmp_path: Path, now: bool) -> None:
    log = begin(tmp_path, "pretrain-a", **ELSEWHERE)
    said: list[str] = []
    with pytest.raises(SetupError) as error:
        cancel_study(tmp_path / "studies/s", [], finders(tmp_path), now=now, say=said.append)
    assert "pretrain-a: process 4711 on gpu-7" in str(error.value)
    assert said == []
    assert log.read_text() == "step 1\n"


def test_a_job_of_a_slurm_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = node_folder(tmp_path, "s", "pretrain-a")
    folder.mkdir(parents=True)
    write_launched(folder, Launched("slurm", 1, 0.0, handle={"job": "12_0"}))
    with pytest.raises(SetupError, match="cannot be reached from this machine.*\n  pretrain-a: job 12_0"):
        cancel_study(tmp_path / "studies/s", [], finders(tmp_path), now=False, say=lambda _: None)


def test_squeue_is_asked_once_however_often_somebody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/bash\necho asked >> {tmp_path}/asked\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launcher = SlurmJobs(tmp_path)
    for _ in range(5):
        assert launcher.poll({"a": Launched("slurm", 1, 0.0, handle={"job": "1_0"})})["a"].status == "gone"
    assert (tmp_path / "asked").read_text() == "asked\n"
    launcher.poll({"a": Launched("slurm", 1, 0.0, handle={"job": "2_0"})})  # submitted since
    assert (tmp_path / "asked").read_text() == "asked\n" * 2


def test_what_can_be_reached_is_ended_beside_what_cannot(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    begin(tmp_path, "pretrain-a", **ELSEWHERE)
    log = begin(tmp_path, "pretrain-b", **identity_of(sleeper.pid))
    said: list[str] = []
    with pytest.raises(SetupError, match="pretrain-a"):
        cancel_study(tmp_path / "studies/s", [], finders(tmp_path), now=False, say=said.append)
    assert sleeper.wait(10) == -15
    assert said == ["pretrain-b: asked to save and end"]
    assert log.read_text() == "step 1\nstudy: asked to stop: study cancel\n"


def test_where_a_node_is_named_what_others_do_elsewhere_does_not_matter(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    begin(tmp_path, "pretrain-a", **ELSEWHERE)
    begin(tmp_path, "pretrain-b", **identity_of(sleeper.pid))
    said: list[str] = []
    cancel_study(tmp_path / "studies/s", ["pretrain-b"], finders(tmp_path), now=False, say=said.append)
    assert said == ["pretrain-b: asked to save and end", "ended"]


@pytest.mark.parametrize(("name", "said"), [("sft-", "is no node that runs"), ("pretrain-", "fits several nodes")])
def test_a_name_that_fits_no_node_or_several_is_refused_with_those_at_work(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], name: str, said: str
) -> None:
    for node in ("pretrain-a", "pretrain-b"):
        begin(tmp_path, node, **identity_of(sleeper.pid))
    with pytest.raises(UsageError) as error:
        cancel_study(tmp_path / "studies/s", [name], finders(tmp_path), now=False, say=lambda _: None)
    assert str(error.value).partition("\n")[0] == f"{name}: {said}; running or queued: pretrain-a, pretrain-b"
    assert sleeper.poll() is None


def test_no_other_process_with_the_pid_of_an_earlier_run_is_asked_to_end(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """The lock is taken, and who has taken it is about to write himself into it."""
    earlier = identity_of(sleeper.pid) | {"start_ticks": 1}
    with (tmp_path / ".lock").open("w") as lock:
        lock.write(json.dumps(earlier))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        said: list[str] = []
        cancel_study(tmp_path, [], finders(tmp_path), now=False, say=said.append)
    assert said == ["nothing of it runs"]
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.3)
