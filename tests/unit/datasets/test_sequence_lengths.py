"""A source goes on at another sequence length with every token that is left, once, in an order that resumes."""

import json
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.datasets.cursor import SourceCursor
from megatron_ext.datasets.documents import Documents
from megatron_ext.datasets.ledger import ledger_of, sum_by_source
from megatron_ext.datasets.reading_order import ReadingOrder, Run
from megatron_ext.plan.lineage import chain_behind
from tests.support.sources import plan_reading, write_source

LENGTHS = (3, 2, 0, 5, 4, 1, 6, 2, 3, 1)
TOKENS = sum(LENGTHS)
stretches = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 25)), min_size=2, max_size=5)
"""A sequence length and how many samples are read at it, one after another."""


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Tokens 0, 1, 2, ... in file order, so that a token names its place; 27 in all."""
    prefix = tmp_path_factory.mktemp("source") / "a"
    ends = np.cumsum([0, *LENGTHS])
    manifest = write_source(prefix, [list(range(start, end)) for start, end in pairwise(ends)], block_documents=4)
    return Documents(str(prefix), source="a", data_id=manifest.data_id)


def _cursor(documents, length):
    return SourceCursor(documents, seed=7, sequence_length=length, window_samples=5)


def _on(cursor, documents, length):
    """A cursor of another length behind this one."""
    after = _cursor(documents, length)
    after.take_over(json.loads(json.dumps(cursor.state_dict())))
    return after


def _rows(cursor, num_samples):
    """The tokens of the next samples, the last label of each included."""
    rows = []
    for _ in range(num_samples):
        row = np.empty(cursor.sequence_length + 1, dtype=np.int64)
        cursor.read(cursor.draw(), row)
        rows.append(row.tolist())
    return rows


def _read(documents, changes):
    cursor = _cursor(documents, changes[0][0])
    for length, num_samples in changes:
        cursor = cursor if cursor.sequence_length == length else _on(cursor, documents, length)
        yield cursor, _rows(cursor, num_samples)


@settings(max_examples=50, deadline=None)
@given(changes=stretches)
def test_no_token_is_read_again_before_all_were_whatever_the_lengths_are(documents, changes):
    times_read, behind = np.zeros(TOKENS, dtype=int), 0
    for _, rows in _read(documents, changes):
        for token in (token for row in rows for token in row[:-1]):
            assert times_read[token] == behind // TOKENS
            times_read[token] += 1
            behind += 1


@settings(max_examples=30, deadline=None)
@given(changes=stretches, data=st.data())
def test_a_cursor_resumed_behind_any_change_draws_what_an_unbroken_one_draws(documents, changes, data):
    for cursor, _ in _read(documents, changes):
        for _ in range(data.draw(st.integers(0, 12))):
            cursor.draw()
        resumed = _cursor(documents, cursor.sequence_length)
        resumed.load_state_dict(json.loads(json.dumps(cursor.state_dict())))
        assert (resumed.place, resumed.cutting) == (cursor.place, cursor.cutting)
        ahead = _cursor(documents, cursor.sequence_length)
        ahead.load_state_dict(cursor.state_dict())
        assert _rows(resumed, 12) == _rows(ahead, 12)


@settings(max_examples=30, deadline=None)
@given(changes=stretches)
def test_exactly_the_labels_that_do_not_follow_their_input_are_seams(documents, changes):
    follows = _cursor(documents, 4 * TOKENS)
    stream = np.empty(4 * TOKENS + 1, dtype=np.int64)
    follows.read(follows.draw(), stream)
    pairs = set(pairwise(stream.tolist()))
    for cursor, _ in _read(documents, changes):
        for _ in range(8):
            if (cursor.place + cursor.sequence_length) > 3 * TOKENS:
                break  # beyond the stream that was laid out
            sample = cursor.draw()
            row = np.empty(cursor.sequence_length + 1, dtype=np.int64)
            cursor.read(sample, row)
            strange = [index for index, pair in enumerate(pairwise(row.tolist())) if pair not in pairs]
            assert set(strange) <= set(cursor.seams(sample))
            assert all(_jumps(cursor, sample, seam) for seam in cursor.seams(sample))


def _jumps(cursor, sample, seam):
    """Whether the label of an input lies elsewhere in the stream than right behind it."""
    first = cursor._first_token(*sample) + seam
    (before,), (after,) = (list(cursor.order.runs(place, 1)) for place in (first, first + 1))
    return after.position != before.position + 1


def test_what_is_left_of_a_window_is_laid_end_to_end(documents):
    cursor = _cursor(documents, 2)
    drawn = [cursor.draw().sample for _ in range(2)]  # of samples 0 to 4
    assert drawn == [4, 2]
    after = _on(cursor, documents, 3)
    left = [0, 1, 2, 3, 6, 7]  # positions of samples 0, 1 and 3; read were 4, 5, 8, 9
    assert [run.position + i for run in after.order.runs(4, 6) for i in range(run.length)] == left
    assert list(after.order.runs(10, 5)) == [Run(10, 5)]
    assert after.order.seams(0, 100) == [8, 10]
    assert after.cutting == "3 < 2@0.0.2"


def test_a_whole_window_leaves_nothing_to_lay(documents):
    cursor = _cursor(documents, 2)
    _rows(cursor, 5)
    after = _on(cursor, documents, 3)
    assert (after.place, after.order.seams(0, 100)) == (10, [])


def test_the_worked_example_of_the_order_is_right():
    order = ReadingOrder().without_read(8, unread=[Run(4, 4), Run(12, 4)], window_end=16)
    assert list(order.runs(8, 10)) == [Run(4, 4), Run(12, 6)]
    assert (order.seams(0, 100), order.end) == ([12], 12)


def test_fresh_behind_a_change_begins_the_next_pass(documents):
    cursor = _on(_cursor(documents, 2), documents, 3)
    cursor.start_afresh()
    assert cursor.place == 0  # nothing was read
    cursor.draw()
    after = _on(cursor, documents, 2)
    after.start_afresh()
    assert after.draw().epoch == 1


@pytest.mark.parametrize("length", [2, 3, 5, 8])
def test_fresh_at_the_end_of_a_pass_begins_the_next_one_whatever_the_lengths_are(documents, length):
    """14 samples of 2 are the first pass of 27 tokens, and the first token of the second."""
    cursor = _cursor(documents, 2)
    _rows(cursor, 14)
    after = cursor if length == 2 else _on(cursor, documents, length)
    after.start_afresh()
    assert (after.place, after.draw().epoch) == (28, 1)
    again = _on(after, documents, 4)
    again.start_afresh()
    assert again.draw().epoch == 2


def test_replay_behind_a_change_is_the_order_of_its_length(documents):
    cursor = _cursor(documents, 2)
    _rows(cursor, 2)
    after = _on(cursor, documents, 3)
    after.replay()
    assert _rows(after, 9) == _rows(_cursor(documents, 3), 9)


def test_a_place_that_another_length_never_left_is_refused(documents):
    cursor = _cursor(documents, 2)
    _rows(cursor, 2)
    state = _on(cursor, documents, 3).state_dict() | {"left": [[2, 0, 7, 0]]}
    with pytest.raises(DataError, match="epoch 0, window 7, position 0 is no place in it"):
        _cursor(documents, 3).load_state_dict(state)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a has 120 tokens and b 24, in documents of 3."""
    folder = tmp_path_factory.mktemp("sources")
    write_source(folder / "a", [[1 + d % 7, 2, 0] for d in range(40)])
    write_source(folder / "b", [[11 + d % 7, 12, 0] for d in range(8)])
    return folder


def _plan(folder, length, phases, **changes):
    totals = Counter()
    for phase in phases:
        totals.update({name: value[0] if isinstance(value, tuple) else value for name, value in phase.items()})
    sources = {name: (folder / name, totals[name]) for name in "ab" if name in totals}
    data = {"document_isolation": "full"}
    return plan_reading(
        sources, global_batch_size=4, phases=phases, batch={"sequence_length": length}, data=data, **changes
    )


def _stage(plan, parent, *, rank=0, size=1):
    cursor = BlendedCursor(plan, data_parallel_rank=rank, data_parallel_size=size)
    if parent is not None:
        ledger = [row.to_json() for row in sum_by_source(ledger_of(*parent))]
        cursor.take_over(json.loads(json.dumps(parent[1].state_dict())), ledger=ledger)
    return cursor


COUNTED = ("first", "repeated", "documents_first", "documents_repeated", "pieces_isolated", "masked")


def _recount(cursor, batch, tokens, begun):
    """What the rows of a batch hold, by source: token by token, from where `locate` says it lies."""
    counts = defaultdict(Counter)
    for row, sample_id in enumerate(batch.sample_ids):
        name, left = sample_id[0], batch.tokens.shape[1]
        counts[name]["pieces_isolated"] += len(batch.cu_seqlens) - 1  # a microbatch is one row
        counts[name]["masked"] += int((batch.loss_mask[row] == 0).sum())
        for span in cursor.locate(sample_id):
            length = min(left, span.length)
            for offset in range(span.start, span.start + length):
                is_new = (span.document, offset) not in tokens[name]
                counts[name]["first" if is_new else "repeated"] += 1
                tokens[name].add((span.document, offset))
            if length and span.start == 0:
                counts[name]["documents_repeated" if span.document in begun[name] else "documents_first"] += 1
                begun[name].add(span.document)
            left -= length
    return counts


moved_phases = st.lists(
    st.tuples(st.integers(1, 8), st.sampled_from(["continue", "fresh", "replay"])), min_size=1, max_size=3
)
"""Steps that read b in each phase, and how it goes on; a always continues."""


def _permitted(phases, lengths):
    """The phases without a replay that the plan refuses: in mid-stage, of what was read at other lengths."""
    is_refused = len(lengths) > 1 and phases[0][1] != "replay"
    return [phases[0], *((rows, "continue" if is_refused and move == "replay" else move) for rows, move in phases[1:])]


@settings(max_examples=25, deadline=None)
@given(stages=st.lists(st.tuples(st.integers(1, 30), moved_phases), min_size=1, max_size=4))
def test_the_ledger_equals_a_recount_across_changes_of_length(folder, stages):
    tokens, begun, parent, behind = defaultdict(set), defaultdict(set), None, None
    lengths, was_moved = set(), False
    for length, asked in stages:
        lengths.add(length)
        phases = _permitted(asked, lengths)
        plan = _plan(folder, length, [{"a": 4, "b": (4 * rows, move)} for rows, move in phases], parent=behind)
        cursor = _stage(plan, parent)
        for number, (rows, move) in enumerate(phases, 1):
            counts = defaultdict(Counter)
            lengths = {length} if move == "replay" else lengths
            was_moved |= move != "continue"
            for _ in range(1 + rows):
                for batch in cursor.next_step():
                    for name, more in _recount(cursor, batch, tokens, begun).items():
                        counts[name].update(more)
                found = {row.source: row for row in ledger_of(plan, cursor) if row.phase == number}
                for name, counted in counts.items():
                    row = found[name]
                    assert row.distinct is not None or (name == "b" and was_moved)
                    known = COUNTED if row.distinct is not None else COUNTED[-2:]
                    assert {field: getattr(row, field) for field in known} == {f: counted[f] for f in known}
                    assert row.read == row.samples * length == counted["first"] + counted["repeated"]
                    assert row.distinct in (None, len(tokens[name]))
        parent, behind = (plan, cursor), chain_behind(plan)


def _global_rows(ranks):
    """(id, tokens, labels, loss mask) of the rows of the next global batch, put together from all ranks."""
    return [
        (batch.sample_ids[i], batch.tokens[i].tolist(), batch.labels[i].tolist(), batch.loss_mask[i].tolist())
        for microbatch in zip(*(cursor.next_step() for cursor in ranks), strict=True)
        for batch in microbatch
        for i in range(len(batch.sample_ids))
    ]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_windows_that_were_cut_anew_resume_at_any_step_in_any_layout(folder, data):
    first = _plan(folder, 4, [{"a": 4, "b": 4}])
    parent = (first, _stage(first, None))
    for _ in range(2):
        parent[1].next_step()
    phases = [{"a": 4, "b": 8}, {"a": 4, "b": (8, "fresh")}]
    plan = _plan(folder, data.draw(st.integers(1, 9)), phases, parent=chain_behind(first))
    alone = _stage(plan, parent)
    whole = [_global_rows([alone]) for _ in range(6)]
    step = data.draw(st.integers(0, 6))
    before, after = (data.draw(st.sampled_from([1, 2, 4])) for _ in range(2))
    stopped = _stage(plan, parent, rank=before - 1, size=before)
    for _ in range(step):
        stopped.next_step()
    resumed = [BlendedCursor(plan, data_parallel_rank=rank, data_parallel_size=after) for rank in range(after)]
    for cursor in resumed:
        cursor.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [_global_rows(resumed) for _ in range(step, 6)] == whole[step:]


def test_the_rows_of_a_chain_sum_tokens_of_different_lengths(folder):
    first = _plan(folder, 4, [{"a": 8}])
    cursor = _stage(first, None)
    for _ in range(2):
        cursor.next_step()
    second = _plan(folder, 6, [{"a": 4}], parent=chain_behind(first))
    after = _stage(second, (first, cursor))
    after.next_step()
    rows = ledger_of(second, after)
    assert [(row.phase, row.read, row.samples, row.place, row.cutting) for row in rows] == [
        (0, 32, 8, 32, "4"),
        (1, 24, 4, 56, "6 < 4@0.0.8"),
    ]
    assert second.parent.sources[0].tokens_read == 32
    assert second.parent.sources[0].sequence_lengths == (4,)


def test_a_replay_at_another_length_leaves_first_and_repeated_unknown(folder):
    first = _plan(folder, 4, [{"a": 8}])
    cursor = _stage(first, None)
    for _ in range(2):
        cursor.next_step()
    second = _plan(folder, 6, [{"a": (4, "replay")}], parent=chain_behind(first))
    after = _stage(second, (first, cursor))
    after.next_step()
    row = ledger_of(second, after)[-1]
    assert (row.cutting, row.place, row.read, row.first, row.repeated) == ("6", 24, 24, None, None)


def test_a_masked_label_is_not_trained_on_and_its_neighbours_are(folder):
    first = _plan(folder, 2, [{"a": 4}])
    cursor = _stage(first, None)
    cursor.next_step()
    second = _plan(folder, 30, [{"a": 4}], parent=chain_behind(first))
    after = _stage(second, (first, cursor))
    batches = after.next_step()
    masked = [place for batch in batches for place in (batch.loss_mask == 0).nonzero()[:, 1].tolist()]
    (source,) = after._cursors
    assert sorted(masked) == sorted((seam - 1 - source.origin) % 30 for seam in source.order.places[1:])
    assert len(masked) == ledger_of(second, after)[-1].masked > 0
