"""Packs lose no token, double none, and hold no more than they may."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError, UsageError
from data_tools.packing import _FEW, Packing, _one_by_one, best_fit_decreasing, pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(np.array)
ALGORITHMS = st.sampled_from(["bfd", "bf-shuffle", "concat"])
KEEPING = st.sampled_from(["drop", "truncate", "split"])


def tokens_of(packing: Packing, piece: int) -> list[tuple[int, int]]:
    """(conversation, token) of every token of a piece, in order."""
    pieces = packing.pieces
    columns = (pieces.conversation, pieces.start, pieces.skip_start, pieces.skip_stop, pieces.stop)
    conversation, start, skip_start, skip_stop, stop = (int(column[piece]) for column in columns)
    return [(conversation, token) for token in (*range(start, skip_start), *range(skip_stop, stop))]


def packed(packing: Packing) -> list[list[tuple[int, int]]]:
    bounds = packing.first_piece.tolist()
    return [
        [token for piece in range(first, end) for token in tokens_of(packing, piece)]
        for first, end in itertools.pairwise(bounds)
    ]


def plain_best_fit_decreasing(lengths: npt.NDArray[np.int64], length: int) -> list[int]:
    """Sorted room left in each pack, a piece and a pack at a time."""
    rooms: list[int] = []
    for size in sorted(lengths.tolist(), reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - size)
        else:
            rooms.append(length - size)
    return sorted(rooms)


def rooms_of(lengths: npt.NDArray[np.int64], packs: npt.NDArray[np.int64], length: int) -> list[int]:
    return sorted((length - np.bincount(packs, weights=lengths)).astype(int).tolist())


@given(LENGTHS, st.integers(40, 90))
@settings(max_examples=300, deadline=None)
def test_best_fit_decreasing_is_the_plain_one(lengths: npt.NDArray[np.int64], length: int) -> None:
    packs = best_fit_decreasing(lengths, length)
    assert rooms_of(lengths, packs, length) == plain_best_fit_decreasing(lengths, length)


@pytest.mark.parametrize("longest", [9, 100, 2_000])
def test_groups_of_equal_lengths_go_where_single_pieces_do(longest: int) -> None:
    lengths = np.random.default_rng(longest).integers(1, longest, _FEW + 904)
    order = np.argsort(-lengths, kind="stable")
    packs = best_fit_decreasing(lengths, 2_048)
    assert packs.tolist() == _one_by_one(lengths, order, 2_048, newest_first=False).tolist()


@given(LENGTHS, st.integers(1, 12), st.sampled_from([1, 2, 3, 4]), ALGORITHMS, KEEPING, st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_no_token_is_lost_or_doubled_and_no_pack_overfull(
    lengths: npt.NDArray[np.int64], units: int, pad: int, algorithm: str, overlong: str, seed: int
) -> None:
    length = units * pad
    packing = pack(lengths, length=length, algorithm=algorithm, overlong=overlong, pad_multiple=pad, seed=seed)
    tokens = [token for row in packed(packing) for token in row]
    assert len(set(tokens)) == len(tokens) == packing.packed_tokens
    lost = packing.dropped.tokens + packing.truncated.tokens + packing.trimmed.tokens
    assert packing.packed_tokens + lost == packing.tokens == lengths.sum()
    padded = -(-packing.pieces.lengths // pad) * pad
    starts = packing.first_piece[:-1]
    assert packing.packs == 0 or (np.add.reduceat(padded, starts) <= length).all()
    assert (packing.pieces.lengths > 0).all()
    assert packing.padding == packing.packs * length - len(tokens)
    if algorithm == "concat" or overlong == "split":
        assert lost == 0


@given(LENGTHS, st.integers(1, 40), st.data())
@settings(max_examples=200, deadline=None)
def test_trimming_takes_only_the_tail_of_the_thinking(
    lengths: npt.NDArray[np.int64], length: int, data: st.DataObject
) -> None:
    edges = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in lengths.tolist()]
    thinking = np.array(edges)
    packing = pack(lengths, length=length, overlong="trim-thinking", thinking=thinking)
    kept: dict[int, list[int]] = {}
    for row in packed(packing):
        for conversation, token in row:
            kept.setdefault(conversation, []).append(token)
    for conversation, size in enumerate(lengths.tolist()):
        start, end = edges[conversation]
        surplus = max(0, size - length)
        if surplus > end - start:
            assert conversation not in kept
        else:
            assert kept[conversation] == [*range(end - surplus), *range(end, size)]
    assert packing.packed_tokens + packing.dropped.tokens + packing.trimmed.tokens == lengths.sum()


def test_the_longest_go_first_and_each_into_the_fullest_pack() -> None:
    packs = best_fit_decreasing(np.array([3, 7, 5, 2, 3]), 10)
    assert packs.tolist() == [0, 0, 1, 1, 1]


def test_of_packs_with_equal_room_the_first_is_filled() -> None:
    assert best_fit_decreasing(np.array([6, 3, 6]), 10).tolist() == [0, 0, 1]


def test_what_is_too_long_is_refused_unless_something_is_said() -> None:
    with pytest.raises(DataError, match=r"2 of 3 conversations have more than 4 tokens, the longest 9; raise"):
        pack(np.array([5, 4, 9]), length=4)


def test_accounts_name_what_is_missing() -> None:
    lengths, thinking = np.array([5, 4, 9, 3]), np.array([[1, 4], [0, 0], [2, 4], [0, 0]])
    drop = pack(lengths, length=4, overlong="drop")
    assert (drop.dropped.conversations, drop.dropped.tokens, drop.packed_tokens) == (2, 14, 7)
    truncate = pack(lengths, length=4, overlong="truncate")
    assert (truncate.truncated.conversations, truncate.truncated.tokens, truncate.packed_tokens) == (2, 6, 15)
    split = pack(lengths, length=4, overlong="split")
    assert (split.split.conversations, split.packed_tokens, len(split.pieces)) == (2, 21, 7)
    trim = pack(lengths, length=4, overlong="trim-thinking", thinking=thinking)
    assert (trim.trimmed.conversations, trim.trimmed.tokens) == (1, 1)
    assert (trim.dropped.conversations, trim.dropped.tokens) == (1, 9)


def test_concat_goes_on_in_the_next_pack() -> None:
    packing = pack(np.array([5, 4, 3]), length=4, algorithm="concat")
    assert packed(packing) == [
        [(0, 0), (0, 1), (0, 2), (0, 3)],
        [(0, 4), (1, 0), (1, 1), (1, 2)],
        [(1, 3), (2, 0), (2, 1), (2, 2)],
    ]
    assert (packing.split.conversations, packing.fill_ratio) == (2, 1.0)


def test_pieces_are_counted_with_their_padding() -> None:
    packing = pack(np.array([3, 3, 3]), length=8, pad_multiple=4)
    assert packing.packs == 2  # 4 + 4, 4
    assert packing.padding == 16 - 9


def test_the_seed_decides_the_order_of_packs_and_nothing_else() -> None:
    lengths = np.arange(1, 60)
    first, again, other = (pack(lengths, length=64, seed=seed) for seed in (0, 0, 1))
    assert packed(first) == packed(again)
    assert packed(first) != packed(other)
    assert sorted(map(sorted, packed(first))) == sorted(map(sorted, packed(other)))


def test_a_length_that_padding_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="--length: 10 is no multiple of --pad-multiple 4; give 8"):
        pack(np.array([1]), length=10, pad_multiple=4)


def test_nothing_to_pack_gives_no_pack() -> None:
    assert pack(np.array([9]), length=4, overlong="drop").packs == 0
