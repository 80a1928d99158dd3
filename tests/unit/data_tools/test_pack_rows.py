"""Rows and steps of drawn conversations, and what is counted of them, on lengths that a pencil can add up."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data_tools.drawing import Drawn
from data_tools.errors import DataError
from data_tools.loss_mask import LossMasks
from data_tools.pack_rows import Conversations, RowOptions, Rows, make_rows


def masks_of(runs: list[list[tuple[int, int]]], thinking: dict[int, tuple[int, int]] | None = None) -> LossMasks:
    first_run = np.cumsum([0, *map(len, runs)])
    flat = np.array([run for of_one in runs for run in of_one], np.int32).reshape(-1, 2)
    return LossMasks(first_run, np.array([(thinking or {}).get(n, (0, 0)) for n in range(len(runs))], np.int32), flat)


def once(size: int, source: int = 0) -> Drawn:
    return Drawn(np.full(size, source), np.arange(size))


def rows_of(lengths: list[int], **options: Any) -> Rows:
    return make_rows([Conversations(np.array(lengths), None)], [once(len(lengths))], RowOptions(**options))


def contents(rows: Rows) -> list[list[int]]:
    """The conversations of each row."""
    numbers = rows.pieces.conversation.tolist()
    return [numbers[a:b] for a, b in zip(rows.first_piece, rows.first_piece[1:], strict=False)]


def test_a_round_is_packed_as_one_and_cut_into_steps_of_rows() -> None:
    rows = rows_of([6, 5, 4, 3, 9, 9], length=9, step=3)
    assert sorted(map(sorted, contents(rows))) == [[0, 3], [1, 2], [4], [5]]
    assert rows.first_row.tolist() == [0, 3, 4]
    assert rows.conversations.sum() == 6


def test_sources_share_rows() -> None:
    sources = [Conversations(np.array([6]), None), Conversations(np.array([3]), None)]
    drawn = Drawn(np.array([0, 1]), np.array([0, 0]))
    rows = make_rows(sources, [drawn], RowOptions(length=9, step=1))
    assert (rows.rows, sorted(rows.source.tolist())) == (1, [0, 1])


def test_copies_of_a_conversation_in_two_rounds_share_no_row() -> None:
    source = Conversations(np.array([4, 4]), None)
    rows = make_rows([source], [once(2), once(2)], RowOptions(length=8, step=1))
    assert contents(rows) == [[0, 1], [0, 1]]
    assert (rows.counts[0].drawn, rows.counts[0].distinct) == (4, 2)


def test_a_step_of_conversations_holds_exactly_so_many() -> None:
    rows = rows_of([5, 5, 5, 2, 2, 2, 2, 8], length=8, step=3, unit="conversations")
    assert rows.conversations.tolist() == [3, 3, 2]
    read: list[int] = []
    assert not set(contents(rows)[0]) <= {0, 1, 2}, "steps take them in random order"
    for step, (begin, end) in enumerate(zip(rows.first_row, rows.first_row[1:], strict=False)):
        inside = [number for row in contents(rows)[begin:end] for number in row]
        assert len(inside) == rows.conversations[step]
        read += inside
    assert sorted(read) == list(range(8))
    assert read != sorted(read)


def test_a_conversation_that_ends_one_round_and_begins_the_next_counts_twice() -> None:
    source = Conversations(np.array([8]), None)
    options = RowOptions(length=8, step=1, unit="conversations")
    assert make_rows([source], [once(1), once(1)], options).conversations.tolist() == [1, 1]


def test_a_split_conversation_stays_in_one_step_of_conversations_and_counts_once() -> None:
    rows = rows_of([20, 8, 8], length=8, step=1, overlong="split", unit="conversations")
    assert rows.conversations.tolist() == [1, 1, 1]
    assert sorted(np.diff(rows.first_row).tolist()) == [1, 1, 3]
    assert rows.counts[0].split.conversations == 1


@pytest.mark.parametrize("unit", ["rows", "conversations"])
def test_a_split_conversation_counts_where_its_first_piece_with_a_target_lies(unit: Any) -> None:
    """Of 12 tokens in rows of 4 the last 7 are the assistant's: the first piece is in no row."""
    source = Conversations(np.array([12]), masks_of([[(5, 12)]]))
    options = RowOptions(length=4, step=1, unit=unit, overlong="split")
    rows = make_rows([source], [once(1), once(1)], options)
    assert sorted(rows.pieces.start.tolist()) == [4, 4, 8, 8]
    assert rows.pieces.start[rows.is_begin].tolist() == [4, 4]
    assert int(rows.conversations.sum()) == 2


def test_targets_are_marked_tokens_that_a_token_of_the_piece_comes_before() -> None:
    masks = masks_of([[(1, 3), (4, 6)], [(0, 5)]])
    source = Conversations(np.array([6, 5]), masks)
    rows = make_rows([source], [once(2)], RowOptions(length=4, step=1, overlong="split"))
    found = {
        (int(c), int(start)): int(targets)
        for c, start, targets in zip(rows.pieces.conversation, rows.pieces.start, rows.targets, strict=True)
    }
    assert found == {(0, 0): 2, (0, 4): 1, (1, 0): 3}  # of (1, 4) the only token has none before it
    assert rows.counts[0].untrained.conversations == 1
    assert (rows.counts[0].targets, rows.counts[0].packed) == (6, 10)


@pytest.mark.parametrize(
    ("overlong", "changed", "tokens"),
    [("drop", "dropped", 12), ("truncate", "truncated", 4), ("trim-thinking", "trimmed", 4)],
)
def test_what_is_not_packed_is_counted(overlong: Any, changed: str, tokens: int) -> None:
    source = Conversations(np.array([12, 8]), masks_of([[(1, 12)], [(1, 8)]], thinking={0: (2, 9)}))
    rows = make_rows([source], [once(2)], RowOptions(length=8, step=1, overlong=overlong))
    count = rows.counts[0]
    assert (getattr(count, changed).conversations, getattr(count, changed).tokens) == (1, tokens)
    assert count.tokens == 20 == count.packed + tokens


def test_overlong_conversations_are_refused_unless_permitted() -> None:
    with pytest.raises(DataError, match="1 of 2 conversations have more than 8 tokens"):
        rows_of([9, 2], length=8, step=1)


def test_an_untrained_conversation_is_in_no_row() -> None:
    source = Conversations(np.array([4, 4]), masks_of([[(1, 4)], []]))
    rows = make_rows([source], [once(2)], RowOptions(length=8, step=1))
    assert contents(rows) == [[0]]
    assert (rows.counts[0].untrained.conversations, rows.counts[0].untrained.tokens) == (1, 4)


def test_pieces_padded_one_by_one_need_more_room() -> None:
    assert rows_of([3, 3, 2], length=8, step=1).rows == 1
    assert rows_of([3, 3, 2], length=8, step=1, pad_multiple=4).rows == 2


def test_rows_depend_on_the_seed() -> None:
    orders = [rows_of([8] * 20, length=8, step=1, seed=seed).pieces.conversation.tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert Counter(orders[0]) == Counter(range(20))


@pytest.mark.parametrize(
    ("unit", "rows"),
    [
        ("rows", [[2, 4], [1, 3], [0, 5], [1, 3], [2, 4], [0, 5]]),
        ("conversations", [[3, 4], [2, 5], [0, 0], [1, 3], [5, 1], [2, 4]]),
    ],
)
def test_the_same_conversations_make_the_rows_that_they_ever_made(unit: Any, rows: list[list[int]]) -> None:
    """Rows that change are another version of them (`ROWS_VERSION`): stages that were trained read these."""
    source = Conversations(np.array([5, 4, 3, 6, 4, 5]), None)
    rounds = [Drawn(np.zeros(6, np.int64), np.arange(6))] * 2
    made = make_rows([source], rounds, RowOptions(length=10, step=4, unit=unit, seed=7))
    bounds = made.first_piece.tolist()
    assert [made.pieces.conversation[a:b].tolist() for a, b in pairwise(bounds)] == rows
