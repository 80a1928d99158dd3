"""Packed rows of one source: every document once an epoch, whole, labelled by its own tokens, resumable, counted."""

from __future__ import annotations

import json
from collections import Counter
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.dataset import read_dataset
from data_tools.errors import DataError
from megatron_ext.datasets.cursor import EpochSample
from megatron_ext.datasets.packed_cursor import PackedCursor
from megatron_ext.plan.packed_rows import RowCounts, windows_of
from tests.support.packed_sources import PADDING, Packed, packed_cursor, packings, row_of, write_packed_source

properties = settings(max_examples=40, deadline=None)


def _inputs(cursor: PackedCursor, sample: EpochSample) -> list[int]:
    return [token for token in row_of(cursor, sample)[:-1] if token != PADDING]


def _kept_tokens(packed: Packed) -> Counter[int]:
    """The tokens that an epoch is to read, once each."""
    kept: Counter[int] = Counter()
    for (start, end), length in zip(pairwise([0, *accumulate(packed.lengths)]), packed.lengths, strict=True):
        stays = packed.kept(length)
        if packed.long_documents == "trim-thinking" and 0 < stays < length:
            kept.update([*range(start, start + stays - 1), end - 1])  # the tail of its thinking is gone
        else:
            kept.update(range(start, start + stays))
    return kept


@properties
@given(packings)
def test_every_epoch_reads_every_kept_token_once_and_no_other(tmp_path_factory, packed):
    cursor = packed_cursor(tmp_path_factory.mktemp("packed"), packed)
    for epoch in range(3):
        drawn = [cursor.draw() for _ in range(cursor.rows_of_pass)]
        assert drawn == [EpochSample(epoch, row) for row in range(cursor.rows_of_pass)]
        assert Counter(token for sample in drawn for token in _inputs(cursor, sample)) == _kept_tokens(packed)


@properties
@given(packings)
def test_a_row_is_labelled_by_the_next_tokens_of_its_own_documents_alone(tmp_path_factory, packed):
    cursor = packed_cursor(tmp_path_factory.mktemp("packed"), packed)
    begins = [0, *accumulate(packed.lengths)]
    for _ in range(2 * cursor.rows_of_pass):
        sample = cursor.draw()
        row, unlabelled = row_of(cursor, sample), set(cursor.seams(sample))
        for place, (token, label) in enumerate(pairwise(row)):
            if place in unlabelled:
                continue
            is_trimmed = packed.long_documents == "trim-thinking" and label > token + 1 and label + 1 in begins
            assert label == token + 1 or is_trimmed
            assert label not in begins
        starts = cursor.starts_in_row(sample)
        begun = {place for place in range(len(row) - 1) if place == 0 or place - 1 in unlabelled}
        padding = {place for place in unlabelled if row[place] == PADDING}
        assert set(starts) - {len(row) - 1} == begun - {place for place in padding if place - 1 in padding}


@properties
@given(packings, st.data())
def test_a_resumed_packed_cursor_draws_what_an_unbroken_one_draws(tmp_path_factory, packed, data):
    folder = tmp_path_factory.mktemp("packed")
    unbroken = packed_cursor(folder, packed)
    for _ in range(data.draw(st.integers(0, 3 * unbroken.rows_of_pass))):
        unbroken.draw()
    resumed = packed_cursor(folder, packed)
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    assert resumed.place == unbroken.place
    assert [resumed.draw() for _ in range(20)] == [unbroken.draw() for _ in range(20)]


@properties
@given(packings)
def test_the_counts_before_every_place_equal_a_recount_of_the_rows(tmp_path_factory, packed):
    """Documents that were left out show when their window has been read to its end: they did not come."""
    cursor = packed_cursor(tmp_path_factory.mktemp("packed"), packed)
    begins = [0, *accumulate(packed.lengths)]
    document_of = {token: d for d, (start, end) in enumerate(pairwise(begins)) for token in range(start, end)}
    blocks = range(0, len(packed.lengths), packed.block_documents)
    seen: list[set[int]] = []
    recount = Counter(dict.fromkeys(RowCounts._fields, 0))
    for number in range(3 * cursor.rows_of_pass):
        if number % cursor.rows_of_pass == 0:
            seen.append(set())
        assert _without_drops(cursor, number) == {name: recount[name] for name in NOT_DROPPED}
        sample = cursor.draw()
        row = row_of(cursor, sample)
        tokens = [token for token in row[:-1] if token != PADDING]
        recount["rows"] += 1
        recount["tokens"] += len(tokens)
        for document in {document_of[token]: None for token in tokens}:
            of_it = [token for token in tokens if document_of[token] == document]
            start, end, length = begins[document], begins[document + 1], packed.lengths[document]
            recount["pieces"] += 1
            recount["documents"] += of_it[0] == start
            recount["unlabelled"] += packed.long_documents != "split" or of_it[-1] == end - 1
            recount["split"] += packed.long_documents == "split" and of_it[0] == start and len(of_it) < length
            missing = length - len(of_it) if packed.long_documents != "split" else 0
            recount["cut"] += missing > 0
            recount["cut_tokens"] += missing
            seen[-1].add(document)
    dropped = [
        [d for block in blocks for d in range(block, min(block + packed.block_documents, len(packed.lengths)))]
        for _ in seen
    ]
    missing = [d for once, all_of_it in zip(seen, dropped, strict=True) for d in all_of_it if d not in once]
    missing = [packed.lengths[d] for d in missing if packed.lengths[d]]
    end = cursor.counts_before(3 * cursor.rows_of_pass * packed.sequence_length).all_passes
    assert (end.dropped, end.dropped_tokens) == (len(missing), sum(missing))


NOT_DROPPED = [field for field in RowCounts._fields if not field.startswith("dropped")]


def _without_drops(cursor: PackedCursor, rows: int) -> dict[str, int]:
    counts = cursor.counts_before(rows * cursor.sequence_length).all_passes._asdict()
    return {name: counts[name] for name in NOT_DROPPED}


PENCIL = Packed(lengths=[3, 9, 1, 2], sequence_length=4)


def test_rows_hold_whole_documents_and_a_long_one_is_split_without_loss(tmp_path):
    cursor = packed_cursor(tmp_path, PENCIL)  # documents 0 1 2 | 3 .. 11 | 12 | 13 14
    assert sorted(row_of(cursor, cursor.draw()) for _ in range(cursor.rows_of_pass)) == [
        [3, 4, 5, 6, 7],  # its last label is the first token of the next piece
        [7, 8, 9, 10, 11],
        [12, 0, 1, 2, PADDING],
        [13, 14, 11, PADDING, PADDING],
    ]


@pytest.mark.parametrize(
    ("long_documents", "rows"),
    [
        ("truncate", [[0, 1, 2, 12, PADDING], [3, 4, 5, 6, PADDING], [13, 14, PADDING, PADDING, PADDING]]),
        ("drop", [[0, 1, 2, 12, PADDING], [13, 14, PADDING, PADDING, PADDING]]),
        ("trim-thinking", [[0, 1, 2, 12, PADDING], [3, 4, 5, 11, PADDING], [13, 14, PADDING, PADDING, PADDING]]),
    ],
)
def test_what_becomes_of_a_long_document_is_as_asked(tmp_path, long_documents, rows):
    cursor = packed_cursor(tmp_path, PENCIL._replace(long_documents=long_documents, seed=1))
    drawn = [row_of(cursor, cursor.draw()) for _ in range(cursor.rows_of_pass)]
    assert sorted(sorted(row[:-1]) for row in drawn) == sorted(sorted(row[:-1]) for row in rows)


def test_a_trimmed_document_is_located_by_two_spans(tmp_path):
    cursor = packed_cursor(tmp_path, Packed([9], long_documents="trim-thinking"))
    assert [tuple(span) for span in cursor.locate(cursor.draw())] == [(0, 0, 3), (0, 8, 1)]


def test_equally_long_documents_change_places_from_epoch_to_epoch(tmp_path):
    cursor = packed_cursor(tmp_path, Packed([2] * 12, block_documents=12, window_pieces=18))
    epochs = [[frozenset(_inputs(cursor, cursor.draw())) for _ in range(6)] for _ in range(2)]
    assert set(epochs[0]) != set(epochs[1])
    assert set().union(*epochs[0]) == set().union(*epochs[1]) == set(range(24))


@pytest.mark.parametrize(("length", "documents_of_a_window"), [(2, 6), (3, 5), (6, 3), (300, 1)])
def test_windows_of_long_documents_hold_fewer_of_them(tmp_path, length, documents_of_a_window):
    """Rows of 3: a document of 6 counts as itself and two rows."""
    write_packed_source(tmp_path / "a", Packed([length] * 11, block_documents=11))
    windows = windows_of(read_dataset(tmp_path / "a"), sequence_length=3, window_pieces=11)
    assert [window.first for window in windows] == list(range(0, 11, documents_of_a_window))
    assert windows[-1].end == 11


def test_a_window_has_as_many_rows_for_every_seed(tmp_path):
    lengths = [3, 1, 2, 4, 1, 2, 3, 3, 11, 2]
    rows = {packed_cursor(tmp_path / str(s), Packed(lengths, seed=s)).rows_of_pass for s in range(20)}
    assert rows == {packed_cursor(tmp_path / "again", Packed(lengths)).rows_of_pass}


def test_a_changed_packed_order_needs_a_new_semantics_version(tmp_path):
    """If this fails because the order was changed on purpose: raise SEMANTICS_VERSION, then renew the rows."""
    cursor = packed_cursor(tmp_path, Packed([3, 2, 0, 5, 4, 1, 6, 2, 3, 1]))
    assert [row_of(cursor, cursor.draw()) for _ in range(cursor.rows_of_pass)] == [
        [0, 1, 2, 9, PADDING],
        [3, 4, PADDING, PADDING, PADDING],
        [5, 6, 7, 8, 9],
        [10, 11, 12, 13, PADDING],
        [14, PADDING, PADDING, PADDING, PADDING],
        [15, 16, 17, 18, 19],
        [19, 20, 21, 22, PADDING],
        [26, 23, 24, 25, PADDING],
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sequence_length": 5}, "sequence_length: the checkpoint has 4, this run 5"),
        ({"long_documents": "drop"}, "long_documents: the checkpoint has 'split', this run 'drop'"),
        ({"seed": 8}, "seed: the checkpoint has 7, this run 8"),
    ],
)
def test_a_place_in_other_rows_is_refused_with_both(tmp_path, changes, said):
    state = packed_cursor(tmp_path, PENCIL).state_dict()
    with pytest.raises(DataError, match=said):
        packed_cursor(tmp_path, PENCIL._replace(**changes)).load_state_dict(state)


@pytest.mark.parametrize("place", [{"window": 1}, {"position": 5}, {"epoch": -1}, {"epoch": None}, {"position": 1.0}])
def test_a_packed_place_that_does_not_exist_is_refused(tmp_path, place):
    cursor = packed_cursor(tmp_path, PENCIL)  # one window of 4 rows
    with pytest.raises(DataError, match="is no place in it; the checkpoint is damaged"):
        cursor.load_state_dict(cursor.state_dict() | place)


def test_fresh_goes_to_the_next_pass_and_replay_to_the_first(tmp_path):
    cursor = packed_cursor(tmp_path, PENCIL)
    first = [cursor.draw() for _ in range(2)]
    cursor.start_afresh()
    assert cursor.draw() == EpochSample(1, 0)
    cursor.replay()
    assert [cursor.draw() for _ in range(2)] == first


def test_the_rows_of_a_dataset_are_counted_once(tmp_path: Path):
    packed_cursor(tmp_path, PENCIL)
    (folder,) = (tmp_path / "prepared").glob("rows-*[0-9a-f]")
    packed_cursor(tmp_path, PENCIL._replace(seed=3))
    assert [path.name for path in (tmp_path / "prepared").glob("rows-*[0-9a-f]")] == [folder.name]


def test_documents_left_out_count_with_the_last_row_of_their_window(tmp_path: Path):
    """Two windows of two rows: 3 1 | 2 without the document of 9, and 4 | 2 1 without that of 5."""
    cursor = packed_cursor(tmp_path, Packed([3, 9, 1, 2, 4, 5, 2, 1], long_documents="drop"))
    places = [rows * cursor.sequence_length for rows in range(5)]
    assert [cursor.counts_before(place).all_passes.dropped for place in places] == [0, 0, 1, 1, 2]
