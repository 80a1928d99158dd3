"""A folder of shards is read as one source: numbered through, exhausted as a whole, checked as a whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.dataset import read_dataset
from data_tools.errors import DataError
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.datasets.cursor import SourceCursor
from megatron_ext.datasets.documents import Documents, Span
from megatron_ext.datasets.shards import open_documents
from tests.support.sources import plan_reading, write_source

SHARDS = ([[1, 2, 0], [3, 0]], [], [[4, 0]], [[], [5, 6, 7, 0], [8, 0]])
DOCUMENTS = [document for shard in SHARDS for document in shard]
TOKENS = [token for document in DOCUMENTS for token in document]


@pytest.fixture
def prefix(tmp_path):
    return _write(tmp_path / "a")


def _write(prefix: Path, *, block_documents: int = 2) -> Path:
    for number, shard in enumerate(SHARDS):
        write_source(prefix.with_name(f"{prefix.name}-{number:05d}"), shard, block_documents=block_documents)
    return prefix


def _open(prefix: Path):
    return open_documents(str(prefix), source="pencil", data_id=read_dataset(prefix).data_id)


def test_documents_are_numbered_through_all_shards(prefix):
    documents = _open(prefix)
    assert (documents.num_documents, documents.num_tokens) == (6, 13)
    for number, document in enumerate(DOCUMENTS):
        if document:
            row = np.empty(len(document), dtype=np.int64)
            documents.read([Span(number, 0, len(document))], row)
            assert row.tolist() == document


def test_spans_of_several_shards_are_read_one_after_another(prefix):
    row = np.empty(6, dtype=np.int64)
    _open(prefix).read([Span(4, 1, 2), Span(0, 1, 2), Span(2, 0, 2)], row)
    assert row.tolist() == [6, 7, 2, 0, 4, 0]


def test_blocks_end_with_their_shard(prefix):
    documents = _open(prefix)
    assert documents.block_tokens.tolist() == [5, 2, 4, 2]
    assert [documents.first_of_block(block) for block in range(4)] == [0, 2, 3, 5]
    assert [documents.lengths_of_block(block).tolist() for block in range(4)] == [[3, 2], [2], [0, 4], [2]]


def test_file_order_runs_from_shard_to_shard(prefix):
    documents = _open(prefix)
    for begin in range(13):
        row = np.empty(13 - begin, dtype=np.int64)
        documents.read_in_file_order(begin, row)
        assert row.tolist() == TOKENS[begin:]
    assert [documents.document_at(position) for position in range(13)] == [0, 0, 0, 1, 1, 2, 2, 4, 4, 4, 4, 5, 5]


def test_documents_begin_where_they_do_in_one_pair(prefix, tmp_path):
    write_source(tmp_path / "b", DOCUMENTS)
    shards, pair = _open(prefix), _open(tmp_path / "b")
    for begin in range(13):
        for length in range(1, 13 - begin):
            assert shards.starts_in_file_order(begin, length) == pair.starts_in_file_order(begin, length)
    assert shards.starts_in_file_order(1, 8) == [2, 4, 6]


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 20), seed=st.integers(0, 5))
def test_every_token_of_all_shards_is_read_once_an_epoch(tmp_path_factory, length, seed):
    documents = _open(_write(tmp_path_factory.mktemp("shards") / "a"))
    cursor = SourceCursor(documents, seed=seed, sequence_length=length)
    read = []
    while len(read) < 2 * len(TOKENS):
        row = np.empty(length + 1, dtype=np.int64)
        sample = cursor.draw()
        cursor.read(sample, row)
        places = [(span.document, span.start + i) for span in cursor.locate(sample) for i in range(span.length)]
        assert row.tolist() == [DOCUMENTS[document][place] for document, place in places]
        read += places[:-1]
    assert len(set(read[: len(TOKENS)])) == len(set(read)) == len(TOKENS)


def test_a_stage_resumed_in_the_middle_of_a_shard_goes_on(prefix):
    plan = plan_reading({"a": (prefix, 12)}, global_batch_size=2)
    whole = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    ids = [batch.sample_ids for _ in range(6) for batch in whole.next_step()]
    stopped, resumed = (BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1) for _ in range(2))
    stopped.next_step()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [batch.sample_ids for _ in range(5) for batch in resumed.next_step()] == ids[2:]


def test_one_pair_is_read_as_before(tmp_path):
    write_source(tmp_path / "b", DOCUMENTS)
    assert isinstance(_open(tmp_path / "b"), Documents)


def test_a_shard_replaced_since_the_plan_is_refused(prefix):
    planned = read_dataset(prefix).data_id
    write_source(prefix.with_name("a-00002"), [[9, 0]], block_documents=2)
    with pytest.raises(DataError, match='of the 4 shards of source "pencil" is not the planned'):
        open_documents(str(prefix), source="pencil", data_id=planned)


def test_shards_without_any_token_are_refused(tmp_path):
    for number in range(2):
        write_source(tmp_path / f"a-{number:05d}", [])
    with pytest.raises(DataError, match=r'tokens: 0; source "pencil" has nothing to read'):
        _open(tmp_path / "a")


def test_blocks_of_two_sizes_are_refused(prefix):
    write_source(prefix.with_name("a-00002"), [[9, 0]], block_documents=3)
    with pytest.raises(DataError, match=r"a-00002: block_documents: 3, but .*a-00000 has 2; tokenize one of them"):
        _open(prefix)
