"""Who is still there when a collective fails because of another rank.

Gloo tells a rank that a connection broke, or that nobody answered in time; not who. So a thread of every rank
waits at the job's store for an alarm and answers it. The first rank whose collective fails raises the alarm and
says who gave no answer; the others wait until it has, and end without a word. The store may live in the process of
rank 0: where it is gone, whoever has heard an alarm before leaves the word to the one that raised it.

With NCCL torch's watchdog ends the process before Python hears of it (TORCH_NCCL_ASYNC_ERROR_HANDLING is 3,
torch 2.13): there its own lines and the flight recorder tell (docs/how-to/run-on-a-cluster.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from data_tools.errors import SetupError
from megatron_ext.runtime.launch import Launch

LOST_RANK = "another rank was lost"
"""What a run says that ended so; jobs of a study then go back to the queue."""

_ANSWER_S = 5.0
"""A living rank answers within milliseconds; one that is told by a closed connection, as soon."""

_FOR_EVER = timedelta(days=20)
"""In milliseconds less than 2**31."""

_GLOO, _TIMED_OUT = "/gloo/", ("Timed out", "timed out")
"""Gloo's errors are plain RuntimeErrors that begin with the place in its source (torch 2.13)."""


class LostRankError(SetupError):
    """A run that ended because another rank was gone, stood still or could not be reached."""


class RollCall:
    """This rank's part of it.

    Args:
        launch: This process among the others; there must be several.
    """

    def __init__(self, launch: Launch) -> None:
        self._rank, self._world_size = launch.rank, launch.world_size
        self._store = _connect()
        self._store.set(f"host {self._rank}", socket.gethostname())
        self._is_closed, self._is_alarmed = False, False
        self._thread = threading.Thread(target=self._answer, args=(_connect(),), name="roll call", daemon=True)
        self._thread.start()

    def _answer(self, store: dist.Store) -> None:
        with contextlib.suppress(RuntimeError):  # the store ends with the job
            store.wait([f"alarm {self._rank}"], _FOR_EVER)
            if not self._is_closed:
                self._is_alarmed = True
                store.set(f"here {self._rank}", "")

    def close(self) -> None:
        """Ends the thread. If the store ended while Python does, its error would abort the process (SIGABRT)."""
        self._is_closed = True
        with contextlib.suppress(RuntimeError):
            self._store.set(f"alarm {self._rank}", "")
        self._thread.join(_ANSWER_S)

    def say_end(self, error: Exception) -> None:
        """Tells the others why this rank ends, which they will only see missing."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"ended {self._rank}", f"{type(error).__name__}: {error}".splitlines()[0])

    def explain(self, error: Exception) -> LostRankError | None:
        """What to say of a failed collective; None where another rank says it.

        Args:
            error: One for which `is_of_other_rank` is true.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the ranks of a node when it sees one dead
        cause = str(error).splitlines()[0]
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        is_speaker = False
        try:
            self._store.set(f"failed {self._rank}", "")
            self._store.multi_set([f"alarm {rank}" for rank in others], [""] * len(others))
            is_speaker = self._store.add("speakers", 1) == 1
            if not is_speaker:
                self._store.wait(["spoken"], 2 * timedelta(seconds=_ANSWER_S))
                return None
            who = self._missing(others, is_late=any(words in cause for words in _TIMED_OUT))
            self._store.set("spoken", "")
        except RuntimeError:
            if self._is_alarmed and not is_speaker:
                return None
            who = f"Rank 0 or its machine ({os.environ['MASTER_ADDR']}) does not answer: the job's store is there."
        return LostRankError(
            f"{LOST_RANK}. {who}\n  {cause}\n  Seen at {_place(error)}. Run again to go on from the newest checkpoint."
        )

    def _missing(self, others: list[int], *, is_late: bool) -> str:
        end = time.monotonic() + _ANSWER_S
        while time.monotonic() < end and not all(self._has_answered(rank) for rank in others):
            time.sleep(0.1)
        if is_late:  # the others wait no longer than this one, and began at most a moment later
            time.sleep(max(0.0, end - time.monotonic()))
        ended = [rank for rank in others if self._store.check([f"ended {rank}"])]
        if ended:
            return " ".join(f"{self._name(rank)} ended: {self._text(f'ended {rank}')}." for rank in ended)
        silent = [rank for rank in others if not self._has_answered(rank)]
        if silent:
            names = ", ".join(map(self._name, silent))
            return f"No sign of {names}: gone, standing still, or not reached."
        late = [rank for rank in others if is_late and not self._store.check([f"failed {rank}"])]
        if late:
            return f"{', '.join(map(self._name, late))} lives, and did not come: it works or waits elsewhere."
        return "All ranks live: a connection between them broke."

    def _has_answered(self, rank: int) -> bool:
        return any(self._store.check([f"{word} {rank}"]) for word in ("here", "failed", "ended"))

    def _name(self, rank: int) -> str:
        there = self._store.check([f"host {rank}"])
        return f"rank {rank} ({self._text(f'host {rank}') if there else 'which never came'})"

    def _text(self, key: str) -> str:
        return self._store.get(key).decode()


def is_of_other_rank(error: Exception) -> bool:
    """Whether a collective failed on this rank because of another."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _GLOO in str(error))


def _place(error: Exception) -> str:
    """The innermost line of this project that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "megatron_ext" in frame.filename]
    if not frames:
        return "a line of another package"
    return f"{'/'.join(Path(frames[-1].filename).parts[-3:])}:{frames[-1].lineno}"


def _connect() -> dist.Store:
    """A connection of its own to the job's store: one that waits in a thread would hold up the others."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=_ANSWER_S),
    )
    return dist.PrefixStore("roll call", store)
