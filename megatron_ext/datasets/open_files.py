"""The files of a blend that are open: so many as the process may spare, however many pairs the blend has."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import IO, NamedTuple

from data_tools.errors import DataError


class _State(NamedTuple):
    size: int
    mtime_ns: int


class OpenFiles:
    """Files that are read at random places; the one longest unread is closed when another needs its room.

    One object serves all sources of a blend: the limit is the process's. A file that is opened again must be the
    one that it was: closed in between, it could have been replaced unseen.
    """

    def __init__(self, *, most: int | None = None) -> None:
        """Opens nothing yet.

        Args:
            most: Files open at once, at least 2; None takes half of what the process may have (`ulimit -n`), so that
                checkpoints and connections have the other half.
        """
        self._most = max(2, most or resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open: dict[str, IO[bytes]] = {}  # the one longest unread first
        self._states: dict[str, _State] = {}

    def descriptor(self, path: str) -> int:
        """The descriptor of a file; good until two other files were asked for.

        Raises:
            DataError: The file is gone, or another one than when it was first opened.
        """
        file = self._open.pop(path, None)
        if file is None:
            if len(self._open) >= self._most:
                self._open.pop(next(iter(self._open))).close()
            file = self._reopened(path)
        self._open[path] = file
        return file.fileno()

    def _reopened(self, path: str) -> IO[bytes]:
        try:
            file = Path(path).open("rb", buffering=0)  # noqa: SIM115 (closed when another needs its room)
        except FileNotFoundError:
            raise DataError(
                f"{path}: is gone; it was removed while it was read. Put it back, and resume from the last checkpoint."
            ) from None
        found = os.fstat(file.fileno())
        state = _State(found.st_size, found.st_mtime_ns)
        first = self._states.setdefault(path, state)
        if state != first:
            file.close()
            raise DataError(
                f"{path}: has {state.size:,} bytes of {state.mtime_ns} (time of change, ns), and had {first.size:,} of "
                f"{first.mtime_ns} when this run opened it; it was replaced while it was read. Put the old file back, "
                "and resume from the last checkpoint."
            )
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        return file
