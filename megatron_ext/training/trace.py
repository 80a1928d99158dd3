"""A torch profiler trace of a few steps: `STAGE/profile/rank_N.json.gz`.

Written by the ranks of the first model replica (data-parallel rank 0): the other replicas do the same on other
rows. Chrome's trace format, gzipped; https://ui.perfetto.dev and chrome://tracing open it as it is. Every step
is a range called `step N`, with `read` and `forward and backward` in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch.profiler import profile, record_function

from megatron_ext.runtime.device import has_gpu
from megatron_ext.training.parts import Parts


class StepTrace:
    """Records the planned steps while entered, and nothing else; a run that ends among them leaves what it has.

    All ranks must build it.

    Args:
        parts: The plan says which steps, the groups which ranks.
        folder: Where the trace goes.
        say: Tells people; does nothing on all ranks but the main one.
    """

    def __init__(self, parts: Parts, folder: Path, *, say: Callable[[str], None]) -> None:
        self._steps = parts.plan.execution.profile_steps
        is_traced = self._steps is not None and parts.groups.dp.rank() == 0
        self._first, self._last = self._steps if self._steps and is_traced else (1, 0)
        self._folder, self._say = folder, say
        self._file = _file_of_rank(folder, dist.get_rank())
        self._traced_ranks = _ranks_where(is_traced) if self._steps else []
        self._profiler: profile | None = None
        self._has_begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        if self._steps is not None:
            self._say(self._description(self._steps))

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Surrounds one step."""
        if not self._first <= number <= self._last:
            yield
            return
        if self._profiler is None:
            if not has_gpu():
                os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or it reports the missing GPU as an error
            self._file.unlink(missing_ok=True)  # of an earlier run: until it is written anew there is none
            self._has_begun = True
            self._profiler = profile()
            self._profiler.start()
        with record_function(f"step {number}"):
            yield
        if number == self._last:
            self._write()

    def _write(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(self._file))
            self._profiler = None

    def _description(self, steps: tuple[int, int]) -> str:
        """One line for the end of a run: where this run's traces lie, or that there are none."""
        files = [_file_of_rank(self._folder, rank) for rank in self._traced_ranks]
        there = [file for file in files if self._has_begun and file.is_file()]  # the main rank is always a traced one
        if not there:
            return f"WARNING: profile.steps {steps[0]}-{steps[1]}: no trace: this run did none of these steps."
        mib = sum(file.stat().st_size for file in there) / 2**20
        names = ", ".join(file.name for file in there)
        return f"profile: {names} ({mib:.1f} MiB) in {self._folder}: open it in https://ui.perfetto.dev"


def _file_of_rank(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.json.gz"


def _ranks_where(fact: bool) -> list[int]:
    """The ranks on which a fact is true. All ranks must call this."""
    facts = [False] * dist.get_world_size()
    dist.all_gather_object(facts, fact)
    return [rank for rank, is_true in enumerate(facts) if is_true]
