"""Opening a tokenised source and reading its tokens."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from data_tools.errors import DataError
from data_tools.manifest import manifest_path
from megatron_ext.datasets.documents import Documents, Span, first_unknown_id
from tests.support.sources import describe_source, write_source

PENCIL = [[1, 2, 0], [3, 0], [], [4, 5, 6, 7, 0]]


def _open(prefix: Path, data_id: str) -> Documents:
    return Documents(str(prefix), source="pencil", data_id=data_id)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_spans_are_read_one_after_another(tmp_path, dtype):
    manifest = write_source(tmp_path / "a", PENCIL, dtype=dtype)
    row = np.empty(5, dtype=np.int64)
    _open(tmp_path / "a", manifest.data_id).read([Span(3, 1, 3), Span(0, 0, 2)], row)
    assert row.tolist() == [5, 6, 7, 1, 2]


def test_lengths_are_those_of_one_block_in_file_order(tmp_path):
    manifest = write_source(tmp_path / "a", PENCIL, block_documents=3)
    documents = _open(tmp_path / "a", manifest.data_id)
    assert documents.lengths_of_block(0).tolist() == [3, 2, 0]
    assert documents.lengths_of_block(1).tolist() == [5]


def test_a_document_of_several_sequences_is_one_document(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.uint16)
    builder.add_document(np.array([1, 2, 3, 4, 0]), [2, 3])
    builder.add_document(np.array([5, 0]), [2])
    builder.finalize(str(tmp_path / "a.idx"))
    manifest = describe_source(tmp_path / "a", [[1, 2, 3, 4, 0], [5, 0]])
    documents = _open(tmp_path / "a", manifest.data_id)
    row = np.empty(5, dtype=np.int64)
    documents.read([Span(0, 1, 4), Span(1, 0, 1)], row)
    assert documents.lengths_of_block(0).tolist() == [5, 2]
    assert row.tolist() == [2, 3, 4, 0, 5]


def test_a_document_without_any_sequence_is_empty(tmp_path):
    # Megatron's own tools write an empty text so.
    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.uint16)
    builder.add_document(np.array([1, 0]), [2])
    builder.end_document()
    builder.add_document(np.array([2, 3, 0]), [3])
    builder.finalize(str(tmp_path / "a.idx"))
    manifest = describe_source(tmp_path / "a", [[1, 0], [], [2, 3, 0]])
    documents = _open(tmp_path / "a", manifest.data_id)
    assert documents.lengths_of_block(0).tolist() == [2, 0, 3]
    assert [documents.document_at(position) for position in range(5)] == [0, 0, 2, 2, 2]


def test_the_document_of_a_file_position_skips_empty_documents(tmp_path):
    manifest = write_source(tmp_path / "a", PENCIL)
    documents = _open(tmp_path / "a", manifest.data_id)
    assert [documents.document_at(position) for position in range(10)] == [0, 0, 0, 1, 1, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(("row", "place"), [([1, 119, 0], None), ([1, 120, 121], 1), ([1, 2, -5], 2)])
def test_the_first_id_outside_the_vocabulary_is_found(row, place):
    assert first_unknown_id(np.array(row, dtype=np.int64), vocab_size=120) == place


def test_a_missing_manifest_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(DataError, match=r"a\.manifest\.json: no such file.*data_tools tokenize"):
        _open(tmp_path / "a", "0")


def test_a_truncated_bin_file_is_refused_with_both_sizes(tmp_path):
    manifest = write_source(tmp_path / "a", PENCIL)
    Path(tmp_path / "a.bin").write_bytes(b"\0" * 18)
    with pytest.raises(DataError, match=r"a\.bin: has 18 bytes, its manifest says 20"):
        _open(tmp_path / "a", manifest.data_id)


def test_other_content_than_planned_is_refused_with_both_identities(tmp_path):
    planned = write_source(tmp_path / "a", PENCIL).data_id
    found = write_source(tmp_path / "a", [*PENCIL, [8, 0]]).data_id
    with pytest.raises(DataError, match=f'data_id: {found} of source "pencil" is not the planned {planned}'):
        _open(tmp_path / "a", planned)


def test_an_empty_source_is_refused(tmp_path):
    manifest = write_source(tmp_path / "a", [[1, 0]])
    fields = json.loads(manifest_path(tmp_path / "a").read_text())
    Path(tmp_path / "a.bin").write_bytes(b"")
    fields |= {"tokens": 0, "bin_bytes": 0, "tokens_per_block": [0]}
    manifest_path(tmp_path / "a").write_text(json.dumps(fields))
    with pytest.raises(DataError, match=r'tokens: 0; source "pencil" has nothing to read'):
        _open(tmp_path / "a", manifest.data_id)


def test_a_manifest_with_too_few_blocks_is_refused(tmp_path):
    manifest = write_source(tmp_path / "a", PENCIL, block_documents=2)
    fields = json.loads(manifest_path(tmp_path / "a").read_text())
    manifest_path(tmp_path / "a").write_text(json.dumps(fields | {"tokens_per_block": [10]}))
    with pytest.raises(DataError, match="has 1 entries, 4 documents in blocks of 2 make 2"):
        _open(tmp_path / "a", manifest.data_id)


def test_an_index_whose_lengths_changed_is_refused_when_its_block_is_read(tmp_path):
    manifest = write_source(tmp_path / "a", PENCIL)
    index = bytearray(Path(tmp_path / "a.idx").read_bytes())
    index[34] = 9  # length of document 0, after the 34 bytes of header
    Path(tmp_path / "a.idx").write_bytes(index)
    with pytest.raises(DataError, match=r"block 0 \(documents from 0\) holds 16 tokens, its manifest says 10"):
        _open(tmp_path / "a", manifest.data_id).lengths_of_block(0)


def test_an_index_that_ends_before_its_last_sequence_is_refused(tmp_path):
    manifest = write_source(tmp_path / "a", PENCIL)
    index = bytearray(Path(tmp_path / "a.idx").read_bytes())
    index[-8] = 3  # the last document index; there are 4 sequences
    Path(tmp_path / "a.idx").write_bytes(index)
    with pytest.raises(DataError, match=r"a\.idx: documents and sequences disagree"):
        _open(tmp_path / "a", manifest.data_id)


def test_starts_are_counted_from_the_place_asked_for_and_empty_documents_have_none(tmp_path):
    manifest = write_source(tmp_path / "a", PENCIL)  # tokens 0-2, 3-4, none, 5-9
    documents = _open(tmp_path / "a", manifest.data_id)
    assert documents.starts_in_file_order(0, 10) == [0, 3, 5]
    assert documents.starts_in_file_order(1, 5) == [2, 4]
    assert documents.starts_in_file_order(1, 4) == [2]
    assert documents.starts_in_file_order(6, 3) == []


def test_a_file_that_is_shortened_while_it_is_read_is_an_error_with_its_place(tmp_path):
    manifest = write_source(tmp_path / "a", PENCIL)  # 10 tokens of 2 bytes; the last document from byte 10 on
    documents = _open(tmp_path / "a", manifest.data_id)
    os.truncate(tmp_path / "a.bin", 14)
    with pytest.raises(DataError, match=r'a\.bin: 4 of 10 bytes at 10 of source "pencil"; the file was shortened'):
        documents.read([Span(3, 0, 5)], np.empty(5, dtype=np.int64))


def test_an_index_that_is_shortened_while_it_is_read_is_an_error_and_not_the_first_tokens(tmp_path):
    manifest = write_source(tmp_path / "a", PENCIL)
    documents = _open(tmp_path / "a", manifest.data_id)
    os.truncate(tmp_path / "a.idx", 34)  # the header alone
    with pytest.raises(DataError, match=r'a\.idx: 0 of 8 bytes at .* of source "pencil"; the file was shortened'):
        documents.read([Span(3, 0, 5)], np.empty(5, dtype=np.int64))
