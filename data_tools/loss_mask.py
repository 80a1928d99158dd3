r"""`PREFIX.mask`: which tokens of each conversation are trained on, and where it thinks.

Little-endian; C conversations, R runs. A run is a range of trained tokens, [start, stop), counted from
the conversation's first token; runs of one conversation ascend and do not touch.

| offset            | bytes   | field |
|-------------------|---------|-------|
| 0                 | 8       | magic `DTMASK\x00\x00` |
| 8                 | 8       | version, 1 |
| 16                | 8       | C |
| 24                | 8       | R |
| 32                | 8 (C+1) | int64: number of the first run of each conversation, then R |
| 40 + 8 C          | 8 C     | 2 x int32: range of the longest trace of thinking, its tags left out; 0 0 for none |
| 40 + 16 C         | 8 R     | 2 x int32: the runs |

Worked size: one conversation whose tokens 3..9 of 10 are trained on, thinking in 4..6, and one of which
nothing is: 40 + 16*2 + 8*1 = 80 bytes; first runs 0 1 1, thinking (4, 7) (0, 0), run (3, 10).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.atomic_files import beside
from data_tools.errors import DataError

Pairs = npt.NDArray[np.int32]

_HEADER = struct.Struct("<8sQQQ")
_MAGIC, _VERSION = b"DTMASK\x00\x00", 1


@dataclass(frozen=True)
class LossMasks:
    """The masks of all conversations of a dataset.

    Attributes:
        first_run: [conversations + 1] number of each one's first run.
        thinking: [conversations, 2] range of the longest trace of thinking.
        runs: [runs, 2] ranges of trained tokens.
    """

    first_run: npt.NDArray[np.int64]
    thinking: Pairs
    runs: Pairs

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.thinking)

    def between(self, first: int, end: int) -> LossMasks:
        """The masks of the conversations first..end."""
        bounds = self.first_run[first : end + 1]
        return LossMasks(bounds - bounds[0], self.thinking[first:end], self.runs[bounds[0] : bounds[-1]])

    def mask(self, conversation: int, *, tokens: int) -> npt.NDArray[np.bool_]:
        """The mask of the first `tokens` tokens of one conversation, [tokens].

        >>> masks = LossMasks(np.array([0, 2]), np.zeros((1, 2), np.int32), np.array([[1, 2], [3, 5]], np.int32))
        >>> masks.mask(0, tokens=5).tolist()
        [False, True, False, True, True]
        >>> masks.mask(0, tokens=2).tolist()
        [False, True]
        """
        edges = np.zeros(tokens + 1, np.int8)
        runs = np.minimum(self.runs[self.first_run[conversation] : self.first_run[conversation + 1]], tokens)
        edges[runs[:, 0]] = 1
        edges[runs[:, 1]] -= 1
        return np.cumsum(edges[:-1]).astype(np.bool_)

    @property
    def trained_tokens(self) -> int:
        """Tokens that are marked, of all conversations."""
        return int((self.runs[:, 1] - self.runs[:, 0]).sum(dtype=np.int64))

    def chosen(self, keep: npt.NDArray[np.bool_]) -> LossMasks:
        """The masks of some of the conversations.

        Args:
            keep: [conversations] which.

        >>> runs = np.array([[1, 2], [3, 5], [0, 4]], np.int32)
        >>> masks = LossMasks(np.array([0, 2, 3]), np.zeros((2, 2), np.int32), runs)
        >>> masks.chosen(np.array([False, True])).runs.tolist()
        [[0, 4]]
        """
        counts = np.diff(self.first_run)
        first_run = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[keep])])
        return LossMasks(first_run, self.thinking[keep], self.runs[np.repeat(keep, counts)])

    @staticmethod
    def joined(masks: Iterable[LossMasks]) -> LossMasks:
        """The masks of some datasets as those of one.

        They are taken one at a time and copied: mapped ones each hold a file open, and there may be more shards than
        the process may have open files.
        """
        counts, none = [np.zeros(1, np.int64)], np.zeros((0, 2), np.int32)
        thinking, runs = [none], [none]
        for part in masks:
            counts.append(np.diff(part.first_run))
            thinking.append(part.thinking.copy())
            runs.append(part.runs.copy())
            del part  # unmapped before the next one is mapped
        return LossMasks(np.cumsum(np.concatenate(counts)), np.concatenate(thinking), np.concatenate(runs))

    def trained_before(self, conversations: npt.NDArray[Any], tokens: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Trained tokens among the first `tokens[i]` tokens of `conversations[i]`.

        Args:
            conversations: [n] numbers of conversations.
            tokens: [n] how many of their tokens to look at.
        """
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.runs[:, 1] - self.runs[:, 0], dtype=np.int64)])
        owner = np.repeat(np.arange(len(self)), np.diff(self.first_run))
        keys = (owner << 32) + self.runs[:, 0]
        run = np.searchsorted(keys, (conversations.astype(np.int64) << 32) + tokens, side="left") - 1
        first = self.first_run[conversations]
        has_one = run >= first
        run = np.maximum(run, 0)
        if not len(self.runs):
            return np.zeros(len(tokens), np.int64)
        inside = np.minimum(tokens, self.runs[run, 1]) - self.runs[run, 0]
        return np.where(has_one, sums[run] + inside - sums[first], 0)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        header = _HEADER.pack(_MAGIC, _VERSION, len(self), len(self.runs))
        arrays = (self.first_run.astype("<i8"), self.thinking.astype("<i4"), self.runs.astype("<i4"))
        return b"".join((header, *(array.tobytes() for array in arrays)))


def mask_path(prefix: str | Path) -> Path:
    """`PREFIX.mask`."""
    return beside(prefix, ".mask")


def read_masks(prefix: str | Path) -> LossMasks:
    """Reads `PREFIX.mask`; the file is mapped, not loaded.

    Raises:
        DataError: If it is missing or damaged.
    """
    path = mask_path(prefix)
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; make it with: python -m data_tools chat") from None
    magic, version, size, runs = _HEADER.unpack(raw[: _HEADER.size]) if len(raw) >= _HEADER.size else (b"", 0, 0, 0)
    if (magic, version) != (_MAGIC, _VERSION):
        raise DataError(f"{path}: not a mask file of version {_VERSION}; make it again")
    expected = _HEADER.size + 8 + 16 * size + 8 * runs
    if len(raw) != expected:
        raise DataError(f"{path}: has {len(raw):,} bytes, its header says {expected:,}; make it again")
    at = _HEADER.size + 8 * (size + 1)
    return LossMasks(
        first_run=np.frombuffer(raw, "<i8", size + 1, _HEADER.size),
        thinking=np.frombuffer(raw, "<i4", 2 * size, at).reshape(size, 2),
        runs=np.frombuffer(raw, "<i4", 2 * runs, at + 8 * size).reshape(runs, 2),
    )
