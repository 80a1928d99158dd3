"""SIGTERM and SIGINT ask for a stop; the loop finishes its step, saves and leaves."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist

from megatron_ext.runtime.device import device

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Notes the first SIGTERM or SIGINT while entered; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def is_agreed(self) -> bool:
        """Whether any rank was asked to stop.

        All ranks must call this: they stop after the same step, or the others would wait for ever.
        """
        asked = torch.tensor(int(self.signal_name is not None), device=device())
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())
