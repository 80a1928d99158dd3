"""A torch profiler trace of a few steps: `STAGE/profile/rank_N.json.gz`.

Written by the ranks of the first model replica (data-parallel rank 0): the other replicas do the same on other
rows. Chrome's trace format, gzipped; https://ui.perfetto.dev and chrome://tracing open it as it is. Every step
is a range called `step N`, with `read` and `forward and backward` in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch.profiler import profile, record_function

from megatron_ext.runtime.device import has_gpu
from megatron_ext.training.parts import Parts


class StepTrace:
    """Records the planned steps while entered, and nothing else; a run that ends among them leaves what it has.

    Args:
        parts: The plan says which steps, the groups which ranks.
        folder: Where the trace goes.
    """

    def __init__(self, parts: Parts, folder: Path) -> None:
        steps = parts.plan.execution.profile_steps if parts.groups.dp.rank() == 0 else None
        self._first, self._last = steps or (1, 0)
        self._file = folder / f"rank_{dist.get_rank()}.json.gz"
        self._profiler: profile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Surrounds one step."""
        if not self._first <= number <= self._last:
            yield
            return
        if self._profiler is None:
            if not has_gpu():
                os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or it reports the missing GPU as an error
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


def describe_traces(folder: Path, steps: tuple[int, int]) -> str:
    """One line for the end of a run: where the traces lie, or that there are none."""
    files = sorted(folder.glob("rank_*.json.gz"))
    if not files:
        return f"WARNING: profile.steps {steps[0]}-{steps[1]}: no trace: this run did none of these steps."
    mib = sum(file.stat().st_size for file in files) / 2**20
    names = ", ".join(file.name for file in files)
    return f"profile: {names} ({mib:.1f} MiB) in {folder}: open it in https://ui.perfetto.dev"
