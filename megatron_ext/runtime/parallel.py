"""Process groups: joined once, left once."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.runtime.device import communication_backend, device_scope, select_device
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.roll_call import LOST_RANK, LostRankError, is_of_other_rank

PATIENCE = timedelta(days=1)
"""How long ranks wait where they do unequal work on purpose, and the slowest decides."""


@dataclass(frozen=True)
class Waits:
    """How long a rank waits for the others in a collective before it gives them up.

    Attributes:
        start: While ranks meet, load and do a first step, and while they save: some have much more to do.
        step: Later.
    """

    start: timedelta = timedelta(minutes=30)
    step: timedelta = timedelta(minutes=10)

    def begin_steps(self) -> None:
        """From here on ranks do equal work. All ranks must call this, inside `process_groups`."""
        parallel_state.update_pg_timeout(self.step)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Some write longer than others. All ranks must enter it, inside `process_groups`."""
        parallel_state.update_pg_timeout(self.start)
        yield
        parallel_state.update_pg_timeout(self.step)


class PatientWait:
    """Lets ranks wait for each other much longer than a collective may take.

    All ranks must make one, and call it.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def __call__(self) -> None:
        """Returns when every rank has come."""
        dist.barrier(self._group)


@contextlib.contextmanager
def process_groups(
    launch: Launch,
    *,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    context_parallel_size: int = 1,
    timeout: timedelta = Waits.start,
) -> Iterator[ProcessGroupCollection]:
    """Joins the process groups of Megatron-Core inside a device scope, and leaves them.

    All ranks must call this.

    Args:
        launch: This process among the others.
        tensor_model_parallel_size: Ranks that share one layer.
        pipeline_model_parallel_size: Ranks in the layer chain.
        context_parallel_size: Ranks that share one sequence.
        timeout: How long ranks wait for each other, here and in collectives.

    Yields:
        The groups: `tp`, `pp`, `dp`, `mp` and the rest of Megatron-Core's collection.

    Raises:
        LostRankError: Some rank did not come.
    """
    select_device(launch.local_rank)
    with device_scope():
        _join(launch, timeout)
        try:
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=tensor_model_parallel_size,
                pipeline_model_parallel_size=pipeline_model_parallel_size,
                context_parallel_size=context_parallel_size,
                distributed_timeout_minutes=timeout.total_seconds() / 60,
            )
            yield ProcessGroupCollection.use_mpu_process_groups()
        finally:
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()


def _join(launch: Launch, timeout: timedelta) -> None:
    number = next(_JOINS)
    try:
        store, rank, world_size = (
            _store(timeout) if "MASTER_ADDR" in os.environ else (dist.HashStore(), launch.rank, launch.world_size)
        )
        dist.init_process_group(
            communication_backend(),
            store=dist.PrefixStore(f"join {number}", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    except RuntimeError as error:
        if launch.world_size == 1 or not is_of_other_rank(error):
            raise
        raise LostRankError(
            f"{LOST_RANK}. Not all {launch.world_size} ranks met within {timeout.total_seconds():.0f} s "
            f"(timeouts.start_s of the site).\n  {str(error).splitlines()[0]}\n"
            "  Look at the other ranks' logs, and whether every machine reaches MASTER_ADDR. Run again to go on."
        ) from error


_JOINS = itertools.count()
"""All ranks join equally often. Each time has keys of its own: in those of the time before, gloo finds addresses of
connections that are closed, and waits for them."""


@functools.cache
def _store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """Where the ranks of this job find each other, this rank and their number; asked once, for its port is one."""
    store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=timeout)))
    store.set_timeout(timeout)
    return store, rank, world_size
