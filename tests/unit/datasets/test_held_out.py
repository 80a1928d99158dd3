"""The held-out rows of a source."""

import pytest

from data_tools.errors import DataError
from megatron_ext.datasets.held_out import held_out_batches
from tests.support.sources import plan_reading, write_source

# 21 tokens: five rows of 4 and the last label.
TWENTY_ONE = [[1, 2, 3, 0], [4, 5, 0], [6, 7, 0], [1, 0], [2, 3, 4, 5, 6, 7, 0], [1, 0]]


def _plan(tmp_path, *, rows, micro_batch_size=1, documents=TWENTY_ONE, isolation="none"):
    write_source(tmp_path / "a", documents)
    return plan_reading(
        {"a": (tmp_path / "a", 8)},
        global_batch_size=8,
        micro_batch_size=micro_batch_size,
        cadence={"validation_samples": rows},
        data={"document_isolation": isolation},
    )


def _batches(plan, *, rank=0, size=1):
    return list(held_out_batches(plan, plan.data.sources[0], data_parallel_rank=rank, data_parallel_size=size))


def test_rows_are_the_first_of_the_file_in_file_order(tmp_path):
    (batch,) = _batches(_plan(tmp_path, rows=3, micro_batch_size=3))
    assert batch.tokens.tolist() == [[1, 2, 3, 0], [4, 5, 0, 6], [7, 0, 1, 0]]
    assert batch.labels.tolist() == [[2, 3, 0, 4], [5, 0, 6, 7], [0, 1, 0, 2]]
    assert batch.sample_ids == ("a.validation:0:0", "a.validation:0:1", "a.validation:0:2")
    assert batch.loss_mask.sum() == 12


def test_two_ranks_read_the_rows_of_one_between_them(tmp_path):
    plan = _plan(tmp_path, rows=4)
    alone = [batch.tokens.tolist() for batch in _batches(plan)]
    first, second = ([batch.tokens.tolist() for batch in _batches(plan, rank=rank, size=2)] for rank in (0, 1))
    assert [first[0], second[0], first[1], second[1]] == alone


def test_ranks_with_fewer_rows_fill_up_with_masked_ones(tmp_path):
    plan = _plan(tmp_path, rows=5, micro_batch_size=2)
    first, second = (_batches(plan, rank=rank, size=2) for rank in (0, 1))
    assert [batch.loss_mask.sum(dim=1).tolist() for batch in first] == [[4, 4], [4, 0]]
    assert [batch.loss_mask.sum(dim=1).tolist() for batch in second] == [[4, 4], [0, 0]]
    assert second[1].tokens.tolist() == [[0] * 4, [0] * 4]
    assert second[1].sample_ids == ("padding", "padding")


def test_at_most_what_is_held_out_is_read(tmp_path):
    assert len(_batches(_plan(tmp_path, rows=100))) == 5


def test_a_held_out_set_shorter_than_one_row_is_refused(tmp_path):
    plan = _plan(tmp_path, rows=1, documents=[[1, 2, 3, 0]])
    with pytest.raises(DataError, match=r"has 4 tokens, one row of sequence length 4 needs 5"):
        _batches(plan)


def test_a_held_out_id_outside_the_vocabulary_is_refused_with_its_document(tmp_path):
    plan = _plan(tmp_path, rows=1, documents=[[1, 0], [2, 500, 0]])
    with pytest.raises(DataError, match=r'source "a \(validation\)", document 1: token id 500'):
        _batches(plan)


def test_other_held_out_data_than_planned_is_refused(tmp_path):
    plan = _plan(tmp_path, rows=1)
    write_source(tmp_path / "a", [[7, 7, 7, 7, 0]])
    with pytest.raises(DataError, match='of source "a" is not the planned'):
        _batches(plan)


def test_isolated_rows_say_where_documents_begin_and_masked_ones_are_one_document(tmp_path):
    plan = _plan(tmp_path, rows=5, micro_batch_size=3, isolation="full")
    first, second = _batches(plan)
    assert first.tokens.tolist() == [[1, 2, 3, 0], [4, 5, 0, 6], [7, 0, 1, 0]]
    assert first.cu_seqlens == (0, 4, 7, 8, 10, 12)
    assert second.tokens.tolist() == [[2, 3, 4, 5], [6, 7, 0, 1], [0] * 4]
    assert second.cu_seqlens == (0, 4, 7, 8, 12)


def test_rows_of_a_stage_without_isolation_say_nothing_of_documents(tmp_path):
    (batch,) = _batches(_plan(tmp_path, rows=1))
    assert batch.cu_seqlens is None
