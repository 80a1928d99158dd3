"""Ranks with unequal work wait for the slowest beyond the limit of a collective, and not for one that is gone."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from megatron_ext.runtime import parallel
from megatron_ext.runtime.launch import Launch
from tests.support.distributed import RankError, run_distributed


def waited(is_patient: bool, second_rank_stays: bool) -> float:
    """The sum of both ranks' numbers, where a collective may take 2 s and the second rank comes 5 s late."""
    parallel.TIMEOUT = timedelta(seconds=2)
    launch = Launch.from_environment()
    with parallel.process_groups(launch):
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
