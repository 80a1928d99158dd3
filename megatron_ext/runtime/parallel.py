"""Process groups: joined once, left once."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.runtime.device import communication_backend, device_scope, select_device
from megatron_ext.runtime.launch import Launch

TIMEOUT = timedelta(minutes=10)
"""After this long without an answer a rank gives up on the others (torch's own default for NCCL)."""


PATIENCE = timedelta(days=1)
"""The same where ranks do unequal work on purpose, and the slowest decides."""


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
) -> Iterator[ProcessGroupCollection]:
    """Joins the process groups of Megatron-Core inside a device scope, and leaves them.

    All ranks must call this.

    Args:
        launch: This process among the others.
        tensor_model_parallel_size: Ranks that share one layer.
        pipeline_model_parallel_size: Ranks in the layer chain.
        context_parallel_size: Ranks that share one sequence.

    Yields:
        The groups: `tp`, `pp`, `dp`, `mp` and the rest of Megatron-Core's collection.
    """
    select_device(launch.local_rank)
    with device_scope():
        _join(launch)
        try:
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=tensor_model_parallel_size,
                pipeline_model_parallel_size=pipeline_model_parallel_size,
                context_parallel_size=context_parallel_size,
            )
            yield ProcessGroupCollection.use_mpu_process_groups()
        finally:
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()


def _join(launch: Launch) -> None:
    backend, number = communication_backend(), next(_JOINS)
    store, rank, world_size = (
        _store() if "MASTER_ADDR" in os.environ else (dist.HashStore(), launch.rank, launch.world_size)
    )
    dist.init_process_group(
        backend, store=dist.PrefixStore(f"join {number}", store), rank=rank, world_size=world_size, timeout=TIMEOUT
    )


_JOINS = itertools.count()
"""All ranks join equally often. Each time has keys of its own: in those of the time before, gloo finds addresses of
connections that are closed, and waits for them."""


@functools.cache
def _store() -> tuple[dist.Store, int, int]:
    """Where the ranks of this job find each other, this rank and their number; asked once, for its port is one."""
    store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    store.set_timeout(TIMEOUT)
    return store, rank, world_size
