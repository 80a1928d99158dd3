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
    "budget.tokens=51_200",  # 100 steps: two windows
    "training.global_batch_size=8",
    "training.micro_batch_size=1",
    "training.validation_interval_tokens=51_200",
    "checkpoint.interval_tokens=51_200",
    "logging.rank_times=true",
)


def run_with_a_slow_rank(project: ToyProject, run_root: Path) -> Run:
    """Two ranks, of which the second stands still for half of the time, in pulses of a few milliseconds."""
    command = project.command(run_root, *KEYS, processes=2)
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as torchrun:
        slow = wait_for_rank(torchrun.pid, 1)
        while torchrun.poll() is None:
            try:
                os.kill(slow, signal.SIGSTOP)
                time.sleep(0.02)
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
def test_a_rank_that_stands_still_half_of_the_time_is_accused_and_the_one_that_waits_is_not(
    toy_project: ToyProject, tmp_path: Path
) -> None:
    run = run_with_a_slow_rank(toy_project, tmp_path)
    assert run.code == 0, run.output
    found = {line["step"]: line["slow_ranks"].keys() for line in run.metrics if "slow_ranks" in line}
    assert found == {50: {"1"}, 100: {"1"}}, run.output
    host = re.escape(socket.gethostname())
    assert re.search(rf"WARNING: step 50: slow ranks, .*\n  rank 1 \({host}\): ", run.output), run.output
    assert "rank times: 100 steps, 2 windows; 1 slow ranks" in run.output
    assert re.search(rf"^ +1  {host} .* 2 of 2$", run.output, re.MULTILINE), run.output
    assert re.search(rf"^ +0  {host} .* 0 of 2$", run.output, re.MULTILINE), run.output
