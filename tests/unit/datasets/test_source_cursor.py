"""The reading order of one source, its resume, and its refusals."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from megatron_ext.datasets.cursor import EpochSample, SourceCursor
from megatron_ext.datasets.documents import Documents, Span
from tests.support.sources import write_source


class Cutting(NamedTuple):
    """An arbitrary source and a way to cut it."""

    lengths: list[int]
    block_documents: int
    sequence_length: int
    window_samples: int
    seed: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


cuttings = st.builds(
    Cutting,
    lengths=st.lists(st.integers(min_value=0, max_value=7), min_size=1, max_size=14).filter(sum),
    block_documents=st.integers(min_value=1, max_value=5),
    sequence_length=st.integers(min_value=1, max_value=9),
    window_samples=st.integers(min_value=1, max_value=6),
    seed=st.integers(min_value=0, max_value=2**63),
)
properties = settings(max_examples=60, deadline=None)


def _cursor(folder: Path, cutting: Cutting) -> SourceCursor:
    """A cursor over tokens 0, 1, 2, ... in file order, so that a token names its place."""
    ends = np.cumsum([0, *cutting.lengths])
    documents = [list(range(start, end)) for start, end in pairwise(ends)]
    manifest = write_source(folder / "a", documents, block_documents=cutting.block_documents)
    return SourceCursor(
        Documents(str(folder / "a"), source="a", data_id=manifest.data_id),
        seed=cutting.seed,
        sequence_length=cutting.sequence_length,
        window_samples=cutting.window_samples,
    )


def _row(cursor: SourceCursor, sample: EpochSample, length: int) -> list[int]:
    row = np.empty(length + 1, dtype=np.int64)
    cursor.read(sample, row)
    return row.tolist()


def _inputs(cursor: SourceCursor, cutting: Cutting, num_samples: int) -> list[int]:
    """The tokens that are read as inputs by the next samples, in reading order."""
    rows = (_row(cursor, cursor.draw(), cutting.sequence_length)[:-1] for _ in range(num_samples))
    return [token for row in rows for token in row]


def _samples_of(cutting: Cutting, num_epochs: int) -> int:
    """Samples that begin within so many epochs."""
    return -(-num_epochs * cutting.tokens // cutting.sequence_length)


@properties
@given(cuttings)
def test_no_token_is_read_again_before_all_have_been_read_as_often(tmp_path_factory, cutting):
    cursor = _cursor(tmp_path_factory.mktemp("cursor"), cutting)
    times_read = np.zeros(cutting.tokens, dtype=int)
    for token in _inputs(cursor, cutting, _samples_of(cutting, 3)):
        assert times_read[token] == times_read.min()
        times_read[token] += 1


@properties
@given(cuttings)
def test_the_samples_of_three_epochs_leave_no_token_out(tmp_path_factory, cutting):
    cursor = _cursor(tmp_path_factory.mktemp("cursor"), cutting)
    times_read = Counter(_inputs(cursor, cutting, _samples_of(cutting, 3)))
    assert min(times_read[token] for token in range(cutting.tokens)) >= 3
    assert 0 <= sum(times_read.values()) - 3 * cutting.tokens < cutting.sequence_length


@properties
@given(cuttings)
def test_the_last_label_of_a_sample_is_the_first_input_of_the_one_cut_next(tmp_path_factory, cutting):
    cursor = _cursor(tmp_path_factory.mktemp("cursor"), cutting)
    drawn = sorted(cursor.draw() for _ in range(_samples_of(cutting, 2)))
    rows = [_row(cursor, sample, cutting.sequence_length) for sample in drawn]
    assert [row[-1] for row in rows[:-1]] == [row[0] for row in rows[1:]]


@properties
@given(cuttings)
def test_windows_are_read_one_after_another_and_end_with_the_epoch(tmp_path_factory, cutting):
    cursor = _cursor(tmp_path_factory.mktemp("cursor"), cutting)
    drawn = [cursor.draw() for _ in range(_samples_of(cutting, 3))]
    windows = [(epoch, sample // cutting.window_samples) for epoch, sample in drawn]
    assert windows == sorted(windows)
    assert len(set(drawn)) == len(drawn)


@properties
@given(cuttings, st.data())
def test_a_resumed_cursor_draws_what_an_unbroken_one_draws(tmp_path_factory, cutting, data):
    folder = tmp_path_factory.mktemp("cursor")
    unbroken = _cursor(folder, cutting)
    for _ in range(data.draw(st.integers(min_value=0, max_value=_samples_of(cutting, 3)))):
        unbroken.draw()
    resumed = _cursor(folder, cutting)
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    assert [resumed.draw() for _ in range(20)] == [unbroken.draw() for _ in range(20)]


TEN = Cutting(lengths=[3, 2, 0, 5, 4, 1, 6, 2, 3, 1], block_documents=4, sequence_length=2, window_samples=5, seed=7)


def test_a_changed_reading_order_needs_a_new_semantics_version(tmp_path):
    """If this fails because the order was changed on purpose: raise SEMANTICS_VERSION, then renew the numbers."""
    cursor = _cursor(tmp_path, TEN)
    drawn = [cursor.draw() for _ in range(16)]
    assert [sample for _, sample in drawn] == [4, 2, 0, 1, 3, 5, 6, 7, 9, 8, 11, 10, 12, 13, 1, 0]
    assert cursor.locate(EpochSample(0, 0)) == [Span(document=6, start=0, length=3)]
    assert _row(cursor, EpochSample(1, 3), 2) == [10, 11, 12]


def test_the_sample_that_crosses_into_the_next_epoch_is_the_last_of_its_own(tmp_path):
    cursor = _cursor(tmp_path, TEN)  # 27 tokens: samples 0 to 13, the last one crosses
    assert [cursor.draw() for _ in range(14)][-1] == EpochSample(0, 13)


def test_the_samples_of_a_window_are_shuffled(tmp_path):
    cursor = _cursor(tmp_path, TEN._replace(lengths=[64], sequence_length=1, window_samples=32))
    first = [cursor.draw().sample for _ in range(32)]
    second = [cursor.draw().sample - 32 for _ in range(32)]
    assert sorted(first) == list(range(32))
    assert first != sorted(first)
    assert first != second


def test_a_sample_longer_than_the_source_spans_epochs(tmp_path):
    cursor = _cursor(tmp_path, Cutting([2], 1, sequence_length=5, window_samples=3, seed=0))
    assert [cursor.draw() for _ in range(3)] == [EpochSample(0, 0), EpochSample(2, 0), EpochSample(5, 0)]
    assert _row(cursor, EpochSample(2, 0), 5) == [1, 0, 1, 0, 1, 0]


def test_documents_are_read_in_the_same_order_at_every_sequence_length(tmp_path):
    short, long = (_cursor(tmp_path, TEN._replace(sequence_length=length)) for length in (3, 9))
    first, second = _row(short, EpochSample(0, 0), 3), _row(short, EpochSample(0, 1), 3)
    assert first + second[1:] == _row(long, EpochSample(0, 0), 9)[:7]


def test_a_place_in_another_cutting_is_refused_with_both_lengths(tmp_path):
    state = _cursor(tmp_path, TEN).state_dict()
    with pytest.raises(DataError, match=r'source "a": sequence_length: the checkpoint has 2, this run 3'):
        _cursor(tmp_path, TEN._replace(sequence_length=3)).load_state_dict(state)


def test_a_place_in_another_order_is_refused_with_both_seeds(tmp_path):
    state = _cursor(tmp_path, TEN).state_dict()
    with pytest.raises(DataError, match=r'source "a": seed: the checkpoint has 7, this run 8'):
        _cursor(tmp_path, TEN._replace(seed=8)).load_state_dict(state)


def test_a_place_in_other_data_is_refused_with_both_identities(tmp_path):
    state = _cursor(tmp_path / "old", TEN).state_dict()
    other = _cursor(tmp_path / "new", TEN._replace(lengths=[28]))
    with pytest.raises(DataError, match=f"data_id: the checkpoint has '{state['data_id']}', this run"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    "place",
    [{"window": 3}, {"position": 6}, {"window": 2, "position": 5}, {"epoch": -1}, {"position": 1.0}, {"epoch": None}],
)
def test_a_place_that_does_not_exist_is_refused(tmp_path, place):
    cursor = _cursor(tmp_path, TEN)  # 14 samples in windows of 5, 5 and 4
    with pytest.raises(DataError, match="is no place in it; the checkpoint is damaged"):
        cursor.load_state_dict(cursor.state_dict() | place)


def test_a_window_behind_the_last_full_one_of_an_epoch_is_refused(tmp_path):
    cursor = _cursor(tmp_path, TEN._replace(window_samples=7))  # 14 samples: windows 0 and 1
    with pytest.raises(DataError, match="window 2, position 0 is no place in it"):
        cursor.load_state_dict(cursor.state_dict() | {"window": 2})
