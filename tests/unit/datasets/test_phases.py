"""Over phases and continued stages nothing is read again before its source is exhausted, whatever the shares do."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from megatron_ext.datasets.blended import BlendedCursor
from tests.support.sources import plan_reading, write_source

ROWS = 4
NAMES = "abc"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sources a, b and c of 60, 40 and 20 documents of 3 tokens: 45, 30 and 15 samples of 4 tokens."""
    folder = tmp_path_factory.mktemp("sources")
    for number, (name, documents) in enumerate({"a": 60, "b": 40, "c": 20}.items()):
        write_source(folder / name, [[10 * number + 1 + d % 7, 10 * number + 2, 0] for d in range(documents)])
    return folder


def _plan(folder, phases, **changes):
    """A plan of some phases, each samples by source name, that make whole steps of 4 rows."""
    totals = Counter()
    for phase in phases:
        totals.update({name: value[0] if isinstance(value, tuple) else value for name, value in phase.items()})
    sources = {name: (folder / name, totals[name]) for name in NAMES if name in totals}
    return plan_reading(sources, global_batch_size=ROWS, phases=phases, **changes)


def _cursor(plan, *, rank=0, size=1):
    return BlendedCursor(plan, data_parallel_rank=rank, data_parallel_size=size)


def _ids(cursor, steps):
    """The sample ids of some steps, in order."""
    return [[name for batch in cursor.next_step() for name in batch.sample_ids] for _ in range(steps)]


def _run(plan):
    return [name for step in _ids(_cursor(plan), plan.batch.total_steps) for name in step]


phase_lists = st.lists(
    st.integers(1, 6).flatmap(
        lambda steps: st.lists(st.integers(0, ROWS * steps), min_size=2, max_size=2).map(
            lambda cuts: {
                name: samples
                for name, samples in zip(
                    NAMES,
                    (min(cuts), max(cuts) - min(cuts), ROWS * steps - max(cuts)),
                    strict=True,
                )
                if samples
            }
        )
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(phases=phase_lists)
def test_every_source_is_less_than_one_sample_off_its_share_at_every_prefix_of_a_phase(folder, phases):
    ids = iter(_run(_plan(folder, phases)))
    for phase in phases:
        total, read = sum(phase.values()), Counter()
        for position in range(1, total + 1):
            read[next(ids)[0]] += 1
            assert all(abs(read[name] * total - samples * position) < total for name, samples in phase.items())
        assert read == phase


@settings(max_examples=60, deadline=None)
@given(phases=phase_lists)
def test_no_token_is_read_again_before_its_source_is_exhausted(folder, phases):
    plan = _plan(folder, phases)
    cursor = _cursor(plan)
    sizes = {source.source: source.tokens for source in plan.data.sources}
    read = {name: Counter() for name in sizes}
    for step in _ids(cursor, plan.batch.total_steps):
        for sample_id in step:
            places = [(span.document, span.start + i) for span in cursor.locate(sample_id) for i in range(span.length)][
                :-1
            ]  # the last one is only a label
            counts = read[sample_id[0]]
            for place in places:
                passes, behind = divmod(sum(counts.values()), sizes[sample_id[0]])
                assert counts[place] == passes, f"{place} is read for the {counts[place] + 1}th time at {behind}"
                counts[place] += 1


@settings(max_examples=40, deadline=None)
@given(phases=phase_lists, data=st.data())
def test_stages_that_continue_one_another_read_what_one_stage_of_all_phases_reads(folder, phases, data):
    cuts = data.draw(st.sets(st.integers(1, max(1, len(phases) - 1)), max_size=len(phases) - 1))
    borders = [0, *sorted(cuts), len(phases)]
    stages = [phases[begin:end] for begin, end in pairwise(borders) if end > begin]
    ids, state = [], None
    for stage in stages:
        plan = _plan(folder, stage)
        cursor = _cursor(plan)
        if state is not None:
            cursor.take_over(json.loads(state), ledger=[])
        ids += [name for step in _ids(cursor, plan.batch.total_steps) for name in step]
        state = json.dumps(cursor.state_dict())
    assert ids == _run(_plan(folder, phases))


@settings(max_examples=25, deadline=None)
@given(phases=phase_lists, data=st.data())
def test_phases_resumed_at_any_step_in_any_layout_read_the_same_next_batches(folder, phases, data):
    plan = _plan(folder, phases)
    whole = _ids(_cursor(plan), plan.batch.total_steps)
    step = data.draw(st.integers(0, plan.batch.total_steps))
    before, after = (data.draw(st.sampled_from([1, 2, 4])) for _ in range(2))
    stopped = _cursor(plan, rank=before - 1, size=before)
    _ids(stopped, step)
    resumed = [_cursor(plan, rank=rank, size=after) for rank in range(after)]
    for cursor in resumed:
        cursor.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for expected in whole[step:]:
        ranks = [[name for batch in cursor.next_step() for name in batch.sample_ids] for cursor in resumed]
        assert [name for rows in zip(*ranks, strict=True) for name in rows] == expected


moved_lists = st.lists(
    st.tuples(st.integers(1, 20), st.sampled_from(["continue", "fresh", "replay"])), min_size=1, max_size=5
)
"""Steps of each phase, and how source c, of 15 samples a pass, goes on in it; a reads as much and always continues."""


def _moved(folder, moves):
    return _plan(folder, [{"a": 2 * steps, "c": (2 * steps, move)} for steps, move in moves])


@settings(max_examples=40, deadline=None)
@given(moves=moved_lists)
def test_every_phase_reads_its_source_from_where_its_cursor_sends_it_on(folder, moves):
    """In order: after continue behind the last sample, after fresh from the next pass, after replay from the first."""
    whole = [name for name in _run(_plan(folder, [{"c": 400}])) if name[0] == "c"]  # the order of 27 passes
    first_of_pass = [next(i for i, name in enumerate(whole) if name.startswith(f"c:{epoch}:")) for epoch in range(26)]
    read = iter(name for name in _run(_moved(folder, moves)) if name[0] == "c")
    place = 0
    for steps, move in moves:
        if move == "replay":
            place = 0
        elif move == "fresh" and place:
            place = min(first for first in first_of_pass if first >= place)
        assert [next(read) for _ in range(2 * steps)] == whole[place : place + 2 * steps]
        place += 2 * steps
    assert next(read, None) is None


@settings(max_examples=40, deadline=None)
@given(moves=moved_lists)
def test_a_source_that_another_one_s_cursor_moves_beside_is_not_read_again(folder, moves):
    plan = _moved(folder, moves)
    cursor, tokens = _cursor(plan), Counter()
    for step in _ids(cursor, plan.batch.total_steps):
        for sample_id in step:
            if sample_id[0] == "a":
                spans = cursor.locate(sample_id)
                places = [(span.document, span.start + i) for span in spans for i in range(span.length)][:-1]
                assert all(tokens[place] == (sum(tokens.values()) + i) // 180 for i, place in enumerate(places))
                tokens.update(places)


@settings(max_examples=25, deadline=None)
@given(moves=moved_lists, data=st.data())
def test_a_run_with_moved_cursors_resumes_at_any_step(folder, moves, data):
    plan = _moved(folder, moves)
    whole = _ids(_cursor(plan), plan.batch.total_steps)
    step = data.draw(st.integers(0, plan.batch.total_steps))
    stopped = _cursor(plan)
    _ids(stopped, step)
    resumed = _cursor(plan)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert _ids(resumed, plan.batch.total_steps - step) == whole[step:]


def test_a_source_that_a_stage_leaves_out_goes_on_where_it_was_in_the_next(folder):
    first, second, third = ({"a": 8, "b": 4}, {"b": 4}, {"a": 8})
    state = None
    for phase in (first, second, third):
        cursor = _cursor(_plan(folder, [phase]))
        if state is not None:
            cursor.take_over(state, ledger=[])
        ids = _ids(cursor, sum(phase.values()) // ROWS)
        state = cursor.state_dict()
    assert [name for step in ids for name in step] == [
        name for name in _run(_plan(folder, [first, {"a": 8}])) if name[0] == "a"
    ][8:]


def test_a_source_goes_on_by_its_content_when_it_was_renamed(folder):
    before = _cursor(_plan(folder, [{"a": 8}]))
    _ids(before, 2)
    renamed = plan_reading({"z": (folder / "a", 8)}, global_batch_size=ROWS)
    after = _cursor(renamed)
    after.take_over(before.state_dict(), ledger=[])
    assert [name[1:] for step in _ids(after, 2) for name in step] == [
        name[1:] for name in _run(_plan(folder, [{"a": 8}, {"a": 8}]))[8:]
    ]


def test_replay_reads_the_same_samples_again_and_fresh_the_next_pass(folder):
    ids = _run(_plan(folder, [{"a": 8}, {"a": (8, "replay")}, {"a": (4, "fresh")}]))
    assert ids[8:16] == ids[:8]
    assert [name.split(":")[1] for name in ids] == ["0"] * 16 + ["1"] * 4


def test_a_fresh_pass_of_a_source_that_is_untouched_is_its_first(folder):
    assert _run(_plan(folder, [{"a": (8, "fresh")}])) == _run(_plan(folder, [{"a": 8}]))


def test_a_moved_cursor_is_not_moved_again_on_resume(folder):
    plan = _plan(folder, [{"a": 4}, {"a": (8, "replay")}])
    stopped = _cursor(plan)
    _ids(stopped, 2)  # one step into the replay
    resumed = _cursor(plan)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert _ids(resumed, 1)[0] == _run(plan)[8:]


def test_a_parent_of_another_seed_or_length_is_refused(folder):
    state = _cursor(_plan(folder, [{"a": 8}])).state_dict()
    with pytest.raises(DataError, match='source "a": seed: the checkpoint has 1234, this run 5'):
        _cursor(_plan(folder, [{"a": 8}], seed=5)).take_over(state, ledger=[])
    with pytest.raises(DataError, match="version: the parent stage has 1, this program reads 4"):
        _cursor(_plan(folder, [{"a": 8}])).take_over(state | {"version": 1}, ledger=[])


def test_a_state_is_a_copy_and_is_copied_where_it_is_taken_up(folder):
    """A checkpoint is written, and a state may be loaded twice, while the cursor that it is of goes on."""
    plan = _plan(folder, [{"a": 4}, {"a": 4}])
    stopped = _cursor(plan)
    _ids(stopped, 1)
    state = stopped.state_dict()
    saved = json.dumps(state)
    resumed, child = _cursor(plan), _cursor(plan)
    resumed.load_state_dict(state)
    child.take_over(state, ledger=[])
    for cursor in (stopped, resumed, child):
        _ids(cursor, 1)
    assert json.dumps(state) == saved
