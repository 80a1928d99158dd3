"""The ranks that a torchrun has started, found among the processes of this machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest


def ranks_of(torchrun: int) -> dict[int, int]:
    """The process of each rank below a torchrun; none where it has ended."""
    found = {}
    try:
        children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    except OSError:
        return {}
    for child in map(int, children):
        rank = rank_of(child)
        if rank is not None:
            found[rank] = child
    return found


def wait_for_rank(torchrun: int, rank: int, *, timeout_s: float = 600.0) -> int:
    """The process of a rank, when it is there."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := ranks_of(torchrun).get(rank)) is not None:
            return found
        time.sleep(0.1)
    pytest.fail(f"torchrun starts no rank {rank}")


def rank_of(process: int) -> int | None:
    """The rank that a process is; None of any other."""
    try:
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:  # it has just ended
        return None
    return next((int(one[5:]) for one in variables if one.startswith(b"RANK=")), None)
