"""Runs a function in several processes that form one gloo job."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.multiprocessing as mp


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """Calls `function(*args)` in `world_size` fresh processes with torchrun's environment and one thread each.

    Args:
        function: A module-level function; it joins the job itself, through
            `process_groups(Launch.from_environment(), ...)`.
        world_size: Number of processes.
        *args: Picklable arguments.
        timeout_s: All processes are killed after this long.

    Returns:
        What each rank returned, in order of ranks.

    Raises:
        torch.multiprocessing.ProcessRaisedException: With the traceback of the first rank that failed.
        TimeoutError: When a rank is still running after `timeout_s`.
    """
    with TemporaryDirectory() as folder:
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world_size)}
        job = mp.spawn(_enter, (environment, function, args, folder), nprocs=world_size, join=False)
        deadline = time.monotonic() + timeout_s
        while not job.join(timeout=max(0.0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                for process in job.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__} on {world_size} processes: not finished after {timeout_s} s")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)]


def _enter(rank: int, environment: dict[str, str], function: Callable[..., Any], args: Any, folder: str) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    torch.save(function(*args), Path(folder, f"{rank}.pt"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
