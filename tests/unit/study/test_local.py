"""What nodes share on one machine, and that a start leaves its traces before anybody looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.errors import SetupError
from megatron_ext.study.launcher import Launched, Task, node_folder, read_launched, write_launched
from megatron_ext.study.local import LocalLauncher, Machine, command_of
from megatron_ext.study.processes import identity_of
from megatron_ext.study.tasks import make_task
from tests.support.stand_in_study import stage_id, stand_in_plan

SLEEPER = ("-n", "1", "-r", "1", "-s", "import time", "time.sleep(60)")  # of python -m timeit
TELLER = ("-n", "1", "-r", "1", "-s", "import os", "print(os.environ['OMP_NUM_THREADS'], os.environ['{}'])")
PATIENCE_S = 600


def launched(*gpus: str) -> Launched:
    return Launched(kind="local", attempt=1, at=0.0, handle={"gpus": list(gpus)})


@pytest.fixture
def task(tmp_path: Path) -> Task:
    plan = stand_in_plan(tmp_path)
    return make_task(plan, plan.stage(stage_id("a")), tmp_path)


def sleeping(task: Task) -> Task:
    return replace(task, module="timeit", arguments=SLEEPER)


@pytest.fixture
def launcher() -> Iterator[LocalLauncher]:
    made = LocalLauncher(workers=1, machine=Machine(cores=2, gpus=()))
    yield made
    for child, _ in made._children.values():
        child.kill()
        child.wait()


def wait_for_end(launcher: LocalLauncher, task: Task, *, attempt: int = 1) -> str:
    """The log of a node's start that has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while "study: exit code" not in (text := (task.folder / f"attempt_{attempt}.log").read_text()):
        launcher.poll({})
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return text


def test_gpus_are_those_of_the_environment_else_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/bash\nprintf '0\\n1\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Machine.found() == Machine(cores=len(os.sched_getaffinity(0)), gpus=("0", "1"))
    for said, gpus in (("3,GPU-7", ("3", "GPU-7")), ("", ()), ("-1", ())):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        assert Machine.found().gpus == gpus


def test_no_more_nodes_run_than_there_are_workers(task: Task) -> None:
    two = LocalLauncher(workers=2, machine=Machine(cores=2, gpus=()))
    assert two.has_room(task, {"x": launched()})
    assert not two.has_room(task, {"x": launched(), "y": launched()})


def test_a_node_waits_for_as_many_free_gpus_as_it_has_processes(task: Task) -> None:
    four = LocalLauncher(workers=4, machine=Machine(cores=8, gpus=("0", "1", "2", "3")))
    wide = replace(task, world_size=2)
    assert four.has_room(wide, {"x": launched("0", "3")})
    assert not four.has_room(wide, {"x": launched("0", "3"), "y": launched("1")})


def test_a_node_that_needs_more_gpus_than_there_are_is_refused_before_anything_starts(task: Task) -> None:
    one = LocalLauncher(workers=1, machine=Machine(cores=8, gpus=("0",)))
    with pytest.raises(
        SetupError, match="this machine has 1 GPUs, and 1 nodes of the study need more:\n  pretrain-a: 2"
    ):
        one.require([task, replace(task, world_size=2)])


def test_cores_are_shared_equally_among_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    two = LocalLauncher(workers=2, machine=Machine(cores=16, gpus=()))
    assert (two.threads_of(1), two.threads_of(4), two.threads_of(16)) == (8, 2, 1)


def test_what_the_user_says_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert LocalLauncher(workers=2, machine=Machine(cores=16, gpus=())).threads_of(4) == 3


def test_a_node_is_told_its_threads_and_its_gpus(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launcher = LocalLauncher(workers=2, machine=Machine(cores=8, gpus=("4", "5", "6")))
    teller = replace(
        task, world_size=1, module="timeit", arguments=(*TELLER[:-1], TELLER[-1].format("CUDA_VISIBLE_DEVICES"))
    )
    launcher.launch([teller], running={"x": launched("4")})
    assert wait_for_end(launcher, task).startswith("4 5\n")
    started = read_launched(task.folder)
    assert started is not None
    assert started.handle["gpus"] == ["5"]


def test_a_start_is_known_by_its_files_when_launch_returns(launcher: LocalLauncher, task: Task) -> None:
    launcher.launch([sleeping(task)])
    started = read_launched(task.folder)
    assert started is not None
    assert started.command[1:] == ("-m", "timeit", *SLEEPER)
    assert launcher.poll({task.name: started})[task.name].status == "running"
    other = LocalLauncher(workers=1, machine=Machine(cores=2, gpus=()))  # of another process, which has no children
    assert other.poll({task.name: started})[task.name].status == "running"


def test_how_a_node_ended_stands_at_the_end_of_its_log(launcher: LocalLauncher, task: Task) -> None:
    launcher.launch([sleeping(task)])
    started = read_launched(task.folder)
    assert started is not None
    launcher.cancel({task.name: started}, now=True)
    assert wait_for_end(launcher, task).endswith("study: exit code -9 (SIGKILL)\n")
    assert launcher.poll({task.name: started})[task.name].status == "gone"


def test_each_start_has_a_log_of_its_own(launcher: LocalLauncher, task: Task) -> None:
    for attempt in (1, 2, 3):
        launcher.launch([replace(task, module="timeit", arguments=("-n", "1", "-r", "1", "print('x')"))])
        wait_for_end(launcher, task, attempt=attempt)
    logs = sorted(path.name for path in task.folder.glob("*.log"))
    assert logs == ["attempt_1.log", "attempt_2.log", "attempt_3.log"]
    assert json.loads((task.folder / "launch.json").read_text())["attempt"] == 3


def test_several_processes_go_through_torchrun_which_gives_them_time_to_save(task: Task) -> None:
    command = command_of(replace(task, world_size=2))
    assert command[1:7] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--shutdown-timeout=3600"),
        "-m",
    ]
    assert command[7:] == ["megatron_ext.run", "a.yaml", "--run-root", str(task.folder.parents[3])]


def test_the_folder_of_a_node_has_its_name(task: Task, tmp_path: Path) -> None:
    assert task.folder == node_folder(tmp_path, "stand_in", stage_id("a"))


def test_torchrun_knows_the_option() -> None:
    import torch.distributed.run

    words = torch.distributed.run.get_args_parser().format_help()
    assert "--shutdown-timeout" in words or "--shutdown_timeout" in words


def test_a_node_whose_start_cannot_be_written_down_does_not_begin(launcher: LocalLauncher, task: Task) -> None:
    task.folder.mkdir(parents=True)
    (task.folder / "launch.json.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        launcher.launch([replace(task, module="timeit", arguments=("-n", "1", "-r", "1", "print('began')"))])
    log = wait_for_end(launcher, task)
    assert "error: not begun: whoever started it has ended, or could not write launch.json" in log
    assert "began\n" not in log


def test_a_process_whose_start_was_never_written_down_begins_nothing(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "megatron_ext.study.local_child", str(tmp_path)],
        stdin=subprocess.DEVNULL,  # as where whoever started it is killed
        capture_output=True,
        text=True,
    )
    assert child.returncode == 4
    assert child.stderr.startswith("error: not begun: ")


def test_a_process_does_not_take_up_what_another_start_has_written_down(tmp_path: Path) -> None:
    other = identity_of(os.getpid())
    write_launched(tmp_path, Launched("local", 1, 0.0, (sys.executable, "-c", "print('begun')"), other))
    child = subprocess.run(
        [sys.executable, "-m", "megatron_ext.study.local_child", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (child.returncode, child.stdout) == (4, "")


def test_of_a_node_in_another_container_the_lock_of_its_log_tells(launcher: LocalLauncher, task: Task) -> None:
    launcher.launch([sleeping(task)])
    started = read_launched(task.folder)
    assert started is not None
    elsewhere = replace(started, handle={**started.handle, "pid_namespace": "pid:[1]", "host": "other"})
    [job] = launcher.poll({task.name: elsewhere}).values()
    assert (job.status, job.is_reachable) == ("running", False)
    assert f"process {started.handle['pid']} in container other of this machine" in job.note
    launcher.cancel({task.name: started}, now=True)
    wait_for_end(launcher, task)
    assert launcher.poll({task.name: elsewhere})[task.name].status == "gone"
