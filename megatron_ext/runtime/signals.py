"""SIGTERM and SIGINT ask for a stop; the loop finishes its step, saves and leaves.

On a cluster every worker gets SIGTERM twice, once from Slurm and once forwarded by torchrun, so a
repeated SIGTERM changes nothing. Ctrl-C twice, a second apart, ends the process at once.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist

from megatron_ext.runtime.device import device

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_IMPATIENCE_S = 1.0
"""One Ctrl-C can reach a worker twice, from the terminal and through torchrun; a person needs longer."""


class StopRequest:
    """Notes SIGTERM and SIGINT while entered."""

    def __init__(self) -> None:
        self._number = 0
        self._noted_at = 0.0

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._number and number == signal.SIGINT and now - self._noted_at > _IMPATIENCE_S:
            raise KeyboardInterrupt
        if not self._number:
            self._number, self._noted_at = int(number), now

    def agreed(self) -> str | None:
        """The name of a signal that some rank got; None when no rank was asked to stop.

        All ranks must call this: they stop after the same step, or the others would wait for ever.
        """
        asked = torch.tensor(self._number, device=device())
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return signal.Signals(int(asked)).name if asked else None
