"""Makes the sample sources that were asked for, one after the other."""

from __future__ import annotations

import math
from pathlib import Path

from data_tools.errors import UsageError
from data_tools.progress import shown
from data_tools.samples.write import SOURCES, WrittenSample, write_sample


def make_samples(out: Path, *, seed: int, only: str | None, scale: float) -> list[WrittenSample]:
    """Makes sample sources in a folder.

    Args:
        out: The folder.
        seed: Decides the rows.
        only: Names separated by commas; all sources when None.
        scale: Times the default size, above 0.

    Raises:
        UsageError: If a name or the scale means nothing.
        SetupError: If the machine lacks what a source is made of.
        DataError: If the folder holds another sample.
    """
    names = list(dict.fromkeys(only.split(","))) if only is not None else list(SOURCES)
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise UsageError(f"--only: {unknown[0]!r} is none of {','.join(sorted(SOURCES))}")
    if not math.isfinite(scale) or scale <= 0:
        raise UsageError(f"--scale: {scale} is not above 0")
    written = []
    for name in names:
        with shown(f"sample {name}", round(SOURCES[name].default_bytes * scale)) as progress:
            written.append(write_sample(SOURCES[name], out, seed=seed, scale=scale, progress=progress))
    return written
