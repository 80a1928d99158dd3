"""What people ask of a running study by signals."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Self

_IMPATIENCE_S = 1.0
"""A Ctrl-C this long after the first one is a second one, and not the same one on another way."""


class StopRequest:
    """Notes Ctrl-C and SIGTERM while entered.

    Attributes:
        to_stop: Name of the signal that came first: nodes are to save and end; "" while none has come.
        at_once: Ctrl-C came again: they are not to save.
    """

    def __init__(self) -> None:
        self.to_stop = ""
        self.at_once = False
        self._first_at = 0.0

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.to_stop:
            self.to_stop, self._first_at = signal.Signals(number).name, now
        elif number == signal.SIGINT and now - self._first_at > _IMPATIENCE_S:
            self.at_once = True
