"""The end of a file that may be long, and grow meanwhile."""

from __future__ import annotations

from pathlib import Path

_TAIL_BYTES = 64 * 1024


def last_lines(file: Path) -> list[str]:
    """The whole lines at the end of a file that may grow meanwhile; [] where there is none.

    A line is whole with its end; the first of a long file may be cut and is left out.
    """
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            start = max(0, size - _TAIL_BYTES)
            opened.seek(start)
            lines = opened.read().split(b"\n")[:-1]
    except OSError:
        return []
    return [line.decode(errors="replace") for line in lines[1 if start else 0 :]]
