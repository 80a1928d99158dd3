"""Under nvidia-resiliency-ext's ft_launcher a run whose ranks all stand still is ended from outside, and goes on.

No time-out of a process group can see that: nobody waits for anybody.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.distributed import _free_port
from tests.support.ranks import rank_of
from tests.support.toy_project import REPOSITORY, ToyProject, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.skipif(
        find_spec("nvidia_resiliency_ext") is None,
        reason="not run: nvidia-resiliency-ext is not installed (extra `resiliency`; wheels need glibc 2.39)",
    ),
]

LONG = (
    "budget.tokens=20_480",  # 40 steps
    "checkpoint.interval_tokens=5_120",
    "training.validation_interval_tokens=20_480",
    "training.micro_batch_size=1",
)
HANG_S = 30


def command(project: ToyProject, run_root: Path) -> list[str]:
    python, *rest = project.command(run_root, *LONG)
    meet = ["--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{_free_port()}"]
    watch = [f"--ft-rank-heartbeat-timeout={HANG_S}", "--ft-initial-rank-heartbeat-timeout=300", "--max-restarts=1"]
    return [python, "-m", "nvidia_resiliency_ext.fault_tolerance.launcher", *meet, "--rdzv-id=toy", *watch, *rest]


def ranks_in(run_root: Path) -> list[int]:
    """The processes that train there."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_one = str(run_root).encode() in file.read_bytes() and rank_of(int(file.parent.name)) is not None
        except OSError:  # it has just ended
            continue
        if is_one:
            found.append(int(file.parent.name))
    return found


def test_ranks_that_all_stand_still_are_killed_and_the_run_goes_on_to_the_same_end(
    toy_project: ToyProject, tmp_path: Path
) -> None:
    undisturbed = toy_project.run(tmp_path / "undisturbed", *LONG, processes=2, timeout_s=600)
    run_root, log = tmp_path / "runs", tmp_path / "log"
    with log.open("ab") as file:
        launcher = subprocess.Popen(
            command(toy_project, run_root), cwd=REPOSITORY, env=environment(), stdout=file, stderr=file
        )
    try:
        while not any(one.read_text().count("\n") >= 12 for one in run_root.glob("stages/*/metrics.jsonl")):
            assert launcher.poll() is None, log.read_text()
            time.sleep(0.01)
        stopped = ranks_in(run_root)
        assert len(stopped) == 2
        for rank in stopped:
            os.kill(rank, signal.SIGSTOP)
        assert launcher.wait(600) == 0, log.read_text()
    finally:
        for process in (launcher.pid, *ranks_in(run_root)) if launcher.poll() is None else ():
            os.kill(process, signal.SIGKILL)
    printed = log.read_text()
    assert f"Did not get subsequent heartbeat. Waited {HANG_S}.00 seconds." in printed
    assert re.findall(r"goes on at step (\d+) ", printed) == ["10"]
    (stage,) = run_root.glob("stages/*/stage.json")
    assert stage.read_bytes() == (undisturbed.stage_folder / "stage.json").read_bytes()
