"""The batches of a stage: the same in every layout, resumable, and never more than planned."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from megatron_ext.datasets.blended import BlendedCursor
from tests.support.sources import plan_reading, write_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sources a (tokens 1 to 7), b (11 to 17) and c (21 to 27), each document ended by EOS 0."""
    folder = tmp_path_factory.mktemp("sources")
    for source, name in enumerate("abc"):
        write_source(folder / name, [_document(number, source) for number in range(30)], block_documents=8)
    return folder


def _document(number, source):
    """One to five tokens that start at another one in each document, then EOS."""
    return [10 * source + 1 + (number + i) % 7 for i in range(number % 5 + 1)] + [0]


def _plan(folder, *, samples=(24, 12, 4), names="abc", **changes):
    sources = {name: (folder / name, count) for name, count in zip(names, samples, strict=True)}
    return plan_reading(sources, global_batch_size=8, **changes)


def _cursor(plan, *, rank=0, size=1):
    return BlendedCursor(plan, data_parallel_rank=rank, data_parallel_size=size)


def _global_batches(plan, *, size=1):
    """The rows of every step, put together from all ranks in Megatron's order."""
    cursors = [_cursor(plan, rank=rank, size=size) for rank in range(size)]
    return [_rows([cursor.next_step() for cursor in cursors]) for _ in range(plan.batch.total_steps)]


def _rows(ranks):
    """(sample id, source, tokens, labels) of each row of one global batch."""
    return [
        (batch.sample_ids[i], int(batch.source_index[i]), batch.tokens[i].tolist(), batch.labels[i].tolist())
        for microbatch in zip(*ranks, strict=True)
        for batch in microbatch
        for i in range(len(batch.sample_ids))
    ]


@pytest.mark.parametrize(("size", "micro_batch_size"), [(2, 1), (2, 4), (4, 2)])
def test_every_layout_sees_the_same_global_batches(folder, size, micro_batch_size):
    alone = _global_batches(_plan(folder))
    assert _global_batches(_plan(folder, micro_batch_size=micro_batch_size), size=size) == alone


def test_a_rank_reads_the_rows_that_megatron_gives_it(folder):
    plan = _plan(folder, micro_batch_size=2)
    whole = [row[0] for row in _global_batches(plan)[0]]
    microbatches = _cursor(plan, rank=1, size=2).next_step()
    assert [list(batch.sample_ids) for batch in microbatches] == [[whole[2], whole[3]], [whole[6], whole[7]]]


def test_a_batch_has_the_promised_shapes_types_and_values(folder):
    (batch,) = _cursor(_plan(folder, micro_batch_size=8)).next_step()
    assert batch.tokens.shape == batch.labels.shape == batch.loss_mask.shape == batch.position_ids.shape == (8, 4)
    assert {batch.tokens.dtype, batch.labels.dtype, batch.position_ids.dtype, batch.source_index.dtype} == {torch.int64}
    assert batch.loss_mask.dtype == torch.float32
    assert batch.loss_mask.sum() == 32
    assert batch.position_ids[5].tolist() == [0, 1, 2, 3]
    assert torch.equal(batch.labels[:, :-1], batch.tokens[:, 1:])


def test_rows_name_the_source_that_their_tokens_come_from(folder):
    for step in _global_batches(_plan(folder)):
        for sample_id, source, tokens, _ in step:
            assert "abc"[source] == sample_id[0]
            assert {token // 10 for token in tokens if token} == {source}


def test_the_stage_reads_each_source_as_often_as_planned(folder):
    sources = [row[1] for step in _global_batches(_plan(folder)) for row in step]
    assert np.bincount(sources).tolist() == [24, 12, 4]


def test_the_order_of_a_source_does_not_depend_on_what_it_is_blended_with(folder):
    def of_a(plan):
        return [row[2] for step in _global_batches(plan) for row in step if row[0][0] == "a"]

    assert of_a(_plan(folder)) == of_a(_plan(folder, names="ca", samples=(56, 24)))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_run_resumed_at_any_step_in_any_layout_reads_the_same_next_batches(folder, data):
    plan = _plan(folder)
    whole = _global_batches(plan)
    step = data.draw(st.integers(min_value=0, max_value=plan.batch.total_steps))
    before, after = (data.draw(st.sampled_from([1, 2, 4])) for _ in range(2))
    stopped = _cursor(plan, rank=before - 1, size=before)
    for _ in range(step):
        stopped.next_step()
    state = json.dumps(stopped.state_dict())
    resumed = [_cursor(plan, rank=rank, size=after) for rank in range(after)]
    for cursor in resumed:
        cursor.load_state_dict(json.loads(state))
    assert [_rows([cursor.next_step() for cursor in resumed]) for _ in range(step, len(whole))] == whole[step:]


def _ramped(folder):
    """Steps of 2, 2, 4, 8, 8 samples."""
    batch = {"ramp": ((1, 2), (3, 4), (4, 8)), "total_steps": 5, "total_samples": 24}
    return _plan(folder, samples=(15, 6, 3), batch=batch)


def test_a_growing_batch_reads_the_samples_of_a_constant_one_in_other_steps(folder):
    steps = _global_batches(_ramped(folder), size=2)
    assert [len(step) for step in steps] == [2, 2, 4, 8, 8]
    rows = [row for step in steps for row in step]
    assert np.bincount([row[1] for row in rows]).tolist() == [15, 6, 3]
    assert rows == [row for step in _global_batches(_plan(folder, samples=(15, 6, 3))) for row in step]


@settings(max_examples=15, deadline=None)
@given(step=st.integers(0, 5), before=st.sampled_from([1, 2]), after=st.sampled_from([1, 2]))
def test_a_run_resumed_inside_the_growth_reads_the_same_next_batches(folder, step, before, after):
    plan = _ramped(folder)
    whole = _global_batches(plan)
    stopped = _cursor(plan, rank=before - 1, size=before)
    for _ in range(step):
        stopped.next_step()
    resumed = [_cursor(plan, rank=rank, size=after) for rank in range(after)]
    for cursor in resumed:
        cursor.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [_rows([cursor.next_step() for cursor in resumed]) for _ in range(step, 5)] == whole[step:]


def test_the_state_is_the_same_on_all_ranks(folder):
    plan = _plan(folder)
    cursors = [_cursor(plan, rank=rank, size=4) for rank in range(4)]
    for cursor in cursors:
        cursor.next_step()
    assert all(cursor.state_dict() == cursors[0].state_dict() for cursor in cursors)


def test_consumed_samples_count_all_ranks(folder):
    cursor = _cursor(_plan(folder), rank=1, size=2)
    cursor.next_step()
    cursor.next_step()
    assert cursor.consumed_samples == 16


def test_sample_ids_lead_back_to_their_documents(folder):
    cursor = _cursor(_plan(folder, micro_batch_size=8))
    (batch,) = cursor.next_step()
    assert set(batch.source_index.tolist()) == {0, 1}
    for row, sample_id in enumerate(batch.sample_ids):
        spans = cursor.locate(sample_id)
        read = [
            token for span in spans for token in _document(span.document, int(batch.source_index[row]))[_part(span)]
        ]
        assert read == [*batch.tokens[row].tolist(), int(batch.labels[row, -1])]


def _part(span):
    return slice(span.start, span.start + span.length)


def test_more_than_the_planned_samples_is_refused_with_the_numbers(folder):
    cursor = _cursor(_plan(folder, samples=(5, 2, 1)))
    cursor.next_step()
    with pytest.raises(DataError, match="8 of the stage's 8 planned samples have been read and 8 more were asked for"):
        cursor.next_step()


def test_a_token_id_outside_the_vocabulary_is_refused_with_source_document_and_id(tmp_path):
    write_source(tmp_path / "bad", [[1, 2, 0], [3, 120, 0]])
    plan = plan_reading({"bad": (tmp_path / "bad", 8)}, global_batch_size=8)
    with pytest.raises(DataError, match='source "bad", document 1: token id 120 is outside model.vocab_size 120'):
        _cursor(plan).next_step()


def test_a_source_replaced_since_the_plan_is_refused_when_the_cursor_opens(tmp_path):
    write_source(tmp_path / "a", [[1, 2, 0]])
    plan = plan_reading({"a": (tmp_path / "a", 8)}, global_batch_size=8)
    write_source(tmp_path / "a", [[2, 1, 0]])
    with pytest.raises(DataError, match='of source "a" is not the planned'):
        _cursor(plan)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"names": "acb"},
            r"sources: the checkpoint has a \(\w{12}…\), b \(\w{12}…\), c \(\w{12}…\), this run a \(\w{12}…\), c ",
        ),
        (
            {"samples": (20, 12, 8)},
            r"planned_samples: the checkpoint has \[\[24, 12, 4\]\], this run \[\[20, 12, 8\]\]",
        ),
        ({"batch": {"sequence_length": 5}}, 'source "a": sequence_length: the checkpoint has 4, this run 5'),
        ({"seed": 5}, 'source "a": seed: the checkpoint has 1234, this run 5'),
    ],
)
def test_a_state_of_another_reading_is_refused_with_both(folder, changes, said):
    state = _cursor(_plan(folder)).state_dict()
    with pytest.raises(DataError, match=said):
        _cursor(_plan(folder, **changes)).load_state_dict(state)


def test_a_state_of_another_version_is_refused_with_what_can_be_done(folder):
    """The recipe of the checkpoint would be refused as well."""
    cursor = _cursor(_plan(folder))
    with pytest.raises(DataError) as caught:
        cursor.load_state_dict({"version": 2})
    assert str(caught.value) == (
        "data position: version: the checkpoint has 2, this program reads 4. Go on with the version of the program "
        "that wrote it, or train anew: give --run-root another folder."
    )


def test_sources_that_were_renamed_go_on_where_they_were(folder):
    """Names are labels: each source takes the name of another one."""
    stopped = _cursor(_plan(folder))
    stopped.next_step()
    renamed = {new: (folder / old, count) for new, old, count in zip("bca", "abc", (24, 12, 4), strict=True)}
    resumed = _cursor(plan_reading(renamed, global_batch_size=8))
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [row[1:] for row in _rows([resumed.next_step()])] == [row[1:] for row in _rows([stopped.next_step()])]


def test_counts_that_no_run_reaches_are_refused(folder):
    cursor = _cursor(_plan(folder))
    state = cursor.state_dict()
    state["samples"][0] = 9
    with pytest.raises(DataError, match="source 0 gave 9 of 24 samples at sample 9 of 40; the checkpoint is damaged"):
        cursor.load_state_dict(state)


def test_a_changed_interleaving_needs_a_new_semantics_version(folder):
    """If this fails because the order was changed on purpose: raise SEMANTICS_VERSION, then renew the ids."""
    steps = _global_batches(_plan(folder))
    assert [row[0] for row in steps[0]] == ["a:0:1", "a:0:7", "b:0:5", "a:0:26", "b:0:3", "a:0:11", "a:0:4", "b:0:14"]
    assert [row[0] for row in steps[4]] == ["b:0:15", "a:0:0", "b:0:2", "a:0:24", "a:0:6", "b:0:24", "a:0:19", "c:0:12"]


def _starts_after_eos(batch):
    """Starts of documents in rows laid end to end: each row's first token, and the token after each EOS."""
    rows, length = batch.tokens.shape
    flat = batch.tokens.flatten().tolist()
    return [place for place in range(rows * length) if place % length == 0 or flat[place - 1] == 0]


@pytest.mark.parametrize("isolation", ["attention", "full"])
def test_isolated_batches_say_where_every_document_begins(folder, isolation):
    cursor = _cursor(_plan(folder, micro_batch_size=4, data={"document_isolation": isolation}))
    for _ in range(5):
        for batch in cursor.next_step():
            assert batch.cu_seqlens == (*_starts_after_eos(batch), 16)


def test_a_document_longer_than_a_row_goes_on_in_one_piece(tmp_path):
    write_source(tmp_path / "a", [[1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 0]])
    plan = plan_reading({"a": (tmp_path / "a", 8)}, global_batch_size=8, data={"document_isolation": "full"})
    assert {batch.cu_seqlens for batch in _cursor(plan).next_step()} == {(0, 4)}


def test_isolation_changes_no_token_and_none_says_nothing_of_documents(folder):
    assert _global_batches(_plan(folder, data={"document_isolation": "full"})) == _global_batches(_plan(folder))
    assert {batch.cu_seqlens for batch in _cursor(_plan(folder)).next_step()} == {None}
