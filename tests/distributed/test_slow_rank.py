"""A rank that is really slow is named, with its machine; one that waits for it is not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.slow_ranks import Place, places_of_ranks
from tests.support.distributed import run_distributed
from tests.support.ranks import wait_for_rank
from tests.support.toy_project import Run, ToyProject, environment

KEYS = (
    "budget.tokens=25_600",  # 100 steps: two windows
    "training.global_batch_size=4",
    "training.micro_batch_size=1",
    "training.validation_interval_tokens=25_600",
    "checkpoint.interval_tokens=25_600",
    "logging.rank_times=true",
)


def run_with_a_slow_rank(project: ToyProject, run_root: Path) -> Run:
    """Four ranks, of which one stands still for three quarters of the time, in pulses shorter than a step."""
    command = project.command(run_root, *KEYS, processes=4)
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as torchrun:
        slow = wait_for_rank(torchrun.pid, 2)
        while torchrun.poll() is None:
            try:
                os.kill(slow, signal.SIGSTOP)
                time.sleep(0.06)
                os.kill(slow, signal.SIGCONT)
            except ProcessLookupError:
                break
            time.sleep(0.02)
        output, _ = torchrun.communicate(timeout=60)
    return Run(code=torchrun.returncode, output=output, run_root=run_root)


def places(stages: int) -> tuple[Place, ...]:
    with process_groups(Launch.from_environment(), pipeline_model_parallel_size=stages) as groups:
        return places_of_ranks(groups)


def test_every_rank_knows_the_machine_and_the_pipeline_stage_of_each() -> None:
    host = socket.gethostname()
    assert run_distributed(places, 2, 2) == [(Place(host, 0), Place(host, 1))] * 2


@pytest.mark.slow
@pytest.mark.system
def test_of_four_ranks_the_one_that_stands_still_most_of_the_time_is_accused_and_none_that_waits_for_it(
    toy_project: ToyProject, tmp_path: Path
) -> None:
    run = run_with_a_slow_rank(toy_project, tmp_path)
    assert run.code == 0, run.output
    found = {line["step"]: line["slow_ranks"].keys() for line in run.metrics if "slow_ranks" in line}
    assert found == {50: {"2"}, 100: {"2"}}, run.output
    host = re.escape(socket.gethostname())
    assert re.search(rf"WARNING: step 50: slow ranks, .*\n  rank 2 \({host}\): ", run.output), run.output
    assert "rank times: 100 steps, 2 windows; 1 slow rank" in run.output
    in_table = re.findall(rf"^ +(\d)  {host} .* (\d) of 2$", run.output, re.MULTILINE)
    assert in_table[0] == ("2", "2")
    assert sorted(in_table[1:]) == [("0", "0"), ("1", "0"), ("3", "0")], run.output


@pytest.mark.slow
@pytest.mark.system
def test_of_four_ranks_with_the_same_work_none_is_accused_though_they_share_a_busy_machine(
    toy_project: ToyProject, tmp_path: Path
) -> None:
    """More ranks than cores: steps differ by several times from one to the next, and no rank stays behind."""
    run = toy_project.run(tmp_path, *KEYS, processes=4, timeout_s=600)
    assert run.code == 0, run.output
    assert not [line for line in run.metrics if "slow_ranks" in line], run.output
    assert "rank times: 100 steps, 2 windows; no slow rank" in run.output
