"""Masks come back as they were written, and counts over parts of them are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError
from data_tools.loss_mask import LossMasks, mask_path, read_masks

MASKS = LossMasks(
    first_run=np.array([0, 1, 1, 3]),
    thinking=np.array([[4, 7], [0, 0], [1, 2]], np.int32),
    runs=np.array([[3, 10], [0, 2], [4, 5]], np.int32),
)
TOKENS = [10, 4, 6]


def test_the_file_is_as_large_as_described_and_reads_back(tmp_path: Path) -> None:
    two = LossMasks(np.array([0, 1, 1]), MASKS.thinking[:2], MASKS.runs[:1])
    assert len(two.to_bytes()) == 80
    mask_path(tmp_path / "a.b").write_bytes(MASKS.to_bytes())
    there = read_masks(tmp_path / "a.b")
    assert there.thinking.tolist() == MASKS.thinking.tolist()
    assert [there.mask(number, tokens=size).nonzero()[0].tolist() for number, size in enumerate(TOKENS)] == [
        [3, 4, 5, 6, 7, 8, 9],
        [],
        [0, 1, 4],
    ]


@pytest.mark.parametrize("conversation", range(3))
def test_trained_tokens_before_each_token_are_counted(conversation: int) -> None:
    size = TOKENS[conversation]
    sums = np.concatenate([[0], np.cumsum(MASKS.mask(conversation, tokens=size))])
    counted = MASKS.trained_before(np.full(size + 1, conversation), np.arange(size + 1))
    assert counted.tolist() == sums.tolist()


def test_no_run_at_all_trains_on_nothing() -> None:
    empty = LossMasks(np.array([0, 0]), np.zeros((1, 2), np.int32), np.zeros((0, 2), np.int32))
    assert empty.trained_before(np.array([0]), np.array([5])).tolist() == [0]


@pytest.mark.parametrize("content", [b"", b"DTMASK\0\0" + bytes(24), MASKS.to_bytes()[:-1], MASKS.to_bytes() + b"\0"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    mask_path(tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mask"):
        read_masks(tmp_path / "a")
