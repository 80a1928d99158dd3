"""Runs functions and whole recipes in processes that form one gloo job.

The processes are forked from one server that has imported torch, Megatron-Core and the product once
(multiprocessing's `forkserver`): a rank starts in 0.2 s instead of 7. They are fresh in every other way: nothing
has run in the server. What depends on the launcher itself goes through torchrun, in tests that say so.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

_PRELOADED = [
    "__main__",
    "torch",
    "torch.distributed.checkpoint",
    "megatron.core.dist_checkpointing",
    "megatron_ext.run",
    "megatron_ext.runtime.parallel",
    "megatron_ext.training.walk",
    "rich.progress",
]


class RankError(Exception):
    """A rank of `run_distributed` raised; holds its traceback."""


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """Calls `function(*args)` in `world_size` processes with torchrun's environment and one thread each.

    Args:
        function: A module-level function; it joins the job itself, through
            `process_groups(Launch.from_environment(), ...)`.
        world_size: Number of processes.
        *args: Picklable arguments.
        timeout_s: All processes are killed after this long.

    Returns:
        What each rank returned, in order of ranks.

    Raises:
        RankError: With the traceback of the first rank that failed.
        TimeoutError: When a rank is still running after `timeout_s`.
    """
    with TemporaryDirectory() as folder:
        failed = _run_ranks(_call, world_size, (function, args, folder), timeout_s=timeout_s)
        if failed is not None:
            raise RankError(f"rank {failed}:\n{Path(folder, f'{failed}.txt').read_text()}")
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world_size)]


def run_recipe(arguments: list[str], *, cwd: Path, processes: int | None, timeout_s: float) -> tuple[int, str]:
    """Runs `megatron_ext.run` with these arguments, as `python -m` does, or torchrun with `processes` ranks.

    Returns:
        The exit code, 1 for any failure of several ranks as torchrun has it, and the output of all ranks.

    Raises:
        TimeoutError: When a rank is still running after `timeout_s`.
    """
    with TemporaryDirectory() as folder:
        output = Path(folder, "output.txt")
        output.touch()
        job = (arguments, cwd, output, processes is not None, Path(folder, "code.txt"))
        failed = _run_ranks(_run_main, processes or 1, job, timeout_s=timeout_s)
        code = 0 if failed is None else 1 if processes is not None else int(Path(folder, "code.txt").read_text())
        return code, output.read_text()


def _run_ranks(target: Callable[..., None], world_size: int, args: tuple[Any, ...], *, timeout_s: float) -> int | None:
    """Starts the ranks and waits; the first that fails ends the others. Returns its number, None if none failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world_size)}
    ranks = [
        context.Process(
            target=_enter, args=(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, target, rank, args)
        )
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    running = {process.sentinel: number for number, process in enumerate(ranks)}
    deadline = time.monotonic() + timeout_s
    try:
        while running:
            ended = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
            if not ended:
                raise TimeoutError(f"{target.__name__} on {world_size} processes: not finished after {timeout_s} s")
            for sentinel in ended:
                number = running.pop(sentinel)  # type: ignore[arg-type]
                ranks[number].join()
                if ranks[number].exitcode:
                    return number
        return None
    finally:
        for process in ranks:
            process.kill()
            process.join()


def _enter(environment: dict[str, str], target: Callable[..., None], rank: int, args: tuple[Any, ...]) -> None:
    os.environ.update(environment, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    target(rank, *args)


def _call(rank: int, function: Callable[..., Any], args: tuple[Any, ...], folder: str) -> None:
    try:
        torch.save(function(*args), Path(folder, f"{rank}.pt"))
    except BaseException:
        Path(folder, f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)


def _run_main(rank: int, arguments: list[str], cwd: Path, output: Path, is_one_of_many: bool, code_file: Path) -> None:
    from megatron_ext.run import main

    if not is_one_of_many:
        for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
            del os.environ[name]
    os.chdir(cwd)
    with output.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    try:
        code: Any = main(arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    code_file.write_text(str(code or 0))
    os._exit(code or 0)


def _free_port() -> int:
    """A port below those that the system gives to connections: none of them can take it before rank 0 listens."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
