"""Ranks with unequal work wait for the slowest beyond the limit of a collective, and not for one that is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_ext.datasets.rollout_file import read_rollouts
from megatron_ext.rollout.sampling_run import SamplingRun
from megatron_ext.run import main
from megatron_ext.runtime import parallel
from megatron_ext.runtime.launch import Launch
from tests.support.distributed import RankError, run_distributed
from tests.support.rl_project import add_rl
from tests.support.toy_project import ToyProject, make_toy_project

LIMIT_S, LATE_S = 15, 20


def waited(is_patient: bool, second_rank_stays: bool) -> float:
    """The sum of both ranks' numbers, where a collective may take 2 s and the second rank comes 5 s late."""
    launch = Launch.from_environment()
    with parallel.process_groups(launch, timeout=timedelta(seconds=2)):
        wait = parallel.PatientWait()
        dist.barrier()
        if launch.rank == 1:
            if not second_rank_stays:
                return 0.0
            time.sleep(5)
        if is_patient:
            wait()
        number = torch.tensor(float(launch.rank + 1))
        dist.all_reduce(number)
        return float(number)


def test_a_rank_that_works_longer_than_a_collective_may_take_is_waited_for() -> None:
    assert run_distributed(waited, 2, True, True) == [3.0, 3.0]


def test_without_patience_the_same_rank_ends_the_job() -> None:
    with pytest.raises(RankError, match="[Tt]imed out|Connection closed"):
        run_distributed(waited, 2, False, True)


def test_a_rank_that_is_gone_ends_the_wait() -> None:
    began = time.monotonic()
    with pytest.raises(RankError, match="Connection closed|closed by peer|Connection reset"):
        run_distributed(waited, 2, True, False)
    assert time.monotonic() - began < 30


def summed_late(is_saving: bool) -> float:
    """The sum over core's data-parallel group when the second rank comes 5 s late and a step's limit is 2 s."""
    launch, waits = Launch.from_environment(), parallel.Waits(start=timedelta(seconds=60), step=timedelta(seconds=2))
    with parallel.process_groups(launch, timeout=waits.start) as groups:
        waits.begin_steps()
        number = torch.tensor(float(launch.rank + 1))
        with waits.saving() if is_saving else contextlib.nullcontext():
            if launch.rank == 1:
                time.sleep(5)
            dist.all_reduce(number, group=groups.dp)
        return float(number)


def test_a_save_may_keep_ranks_waiting_longer_than_a_step() -> None:
    assert run_distributed(summed_late, 2, True) == [3.0, 3.0]


def test_in_a_step_ranks_give_up_sooner() -> None:
    with pytest.raises(RankError, match="[Tt]imed out|Connection closed"):
        run_distributed(summed_late, 2, False)


def sampled_late(root: Path, run_root: Path) -> int:
    """The exit code of one step of an rl stage, where each sampling of the second rank takes `LATE_S` longer."""
    finish = SamplingRun.finish

    def finish_late(self: SamplingRun) -> Any:
        completions = finish(self)
        time.sleep(LATE_S)
        return completions

    if Launch.from_environment().rank == 1:
        SamplingRun.finish = finish_late  # type: ignore[method-assign]
    os.chdir(root)
    command = ToyProject(root).command(run_root, "training.max_steps=1", recipe=root / "rl.yaml")
    return main(command[command.index("megatron_ext.run") + 1 :])


@pytest.mark.slow
def test_a_stage_goes_on_when_one_rank_samples_longer_than_a_collective_may_take(tmp_path: Path) -> None:
    project = make_toy_project(tmp_path)
    add_rl(project)
    with (tmp_path / "site.yaml").open("a") as site:
        site.write(f"timeouts: {{step_s: {LIMIT_S}, start_s: {LIMIT_S}}}\n")
    assert project.run(project.root / "runs").code == 0
    began = time.monotonic()
    assert run_distributed(sampled_late, 2, tmp_path, project.root / "runs", timeout_s=180) == [0, 0]
    assert time.monotonic() - began > 2 * LATE_S  # before the first step, and in it
    (stage,) = project.root.glob("runs/stages/rl-*")
    assert (stage / "before.json").is_file()
    assert len(read_rollouts(stage, 1)[1]) == 4 * 2


def stood_still(root: Path, run_root: Path) -> int:
    """The exit code of a stage in which the second rank stands still for 25 s behind its third step."""
    if Launch.from_environment().rank == 1:
        threading.Thread(target=_stand_still, args=(run_root, 25), daemon=True).start()
    os.chdir(root)
    command = ToyProject(root).command(run_root, "training.micro_batch_size=1", "training.max_steps=8")
    return main(command[command.index("megatron_ext.run") + 1 :])


def _stand_still(run_root: Path, seconds: int) -> None:
    while not any(file.read_text().count("\n") >= 3 for file in run_root.glob("stages/*/metrics.jsonl")):
        time.sleep(0.01)
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.parametrize(("step_s", "code"), [(15, 4), (100, 0)])
def test_a_rank_that_stands_still_in_a_step_is_waited_for_as_long_as_the_site_says(
    tmp_path: Path, step_s: int, code: int
) -> None:
    project = make_toy_project(tmp_path)
    with (tmp_path / "site.yaml").open("a") as site:
        site.write(f"timeouts: {{step_s: {step_s}, start_s: 300}}\n")
    assert run_distributed(stood_still, 2, tmp_path, project.root / "runs", timeout_s=300) == [code, code]
