"""The order in which a source's tokens are read."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.permutation import keyed_permutation
from megatron_ext.datasets.documents import Documents, Span
from megatron_ext.datasets.stream import TokenStream, blocks_to_hold
from tests.support.sources import write_source

ELEVEN = [[document] * (document % 4) + [0] for document in range(1, 12)]


def _stream(folder, documents, *, seed=1, block_documents=4):
    manifest = write_source(folder / "a", documents, block_documents=block_documents)
    return TokenStream(Documents(str(folder / "a"), source="a", data_id=manifest.data_id), seed=seed, blocks_held=2)


def _epoch(stream, epoch):
    tokens = stream.documents.num_tokens
    return stream.spans(epoch * tokens, tokens)


def _keyed_permutation_ref(size, key):
    """splitmix64 in whole numbers, after S. Vigna's splitmix64.c."""
    state = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    ranks = []
    for _ in range(size):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        bits = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        ranks.append(bits ^ (bits >> 31))
    return sorted(range(size), key=ranks.__getitem__)


def test_the_permutation_of_a_key_never_changes():
    assert keyed_permutation(8, key="golden").tolist() == [2, 1, 4, 0, 7, 3, 6, 5]


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=200), st.text(max_size=8))
def test_a_keyed_permutation_ranks_by_splitmix64(size, key):
    assert keyed_permutation(size, key=key).tolist() == _keyed_permutation_ref(size, key)


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=200), st.text(max_size=8))
def test_a_keyed_permutation_holds_each_number_once(size, key):
    assert sorted(keyed_permutation(size, key=key).tolist()) == list(range(size))


def test_first_places_of_permutations_are_spread_evenly():
    # 10,000 keys over 8 places: 1,250 each, standard deviation 33; five of them either way.
    firsts = [int(keyed_permutation(8, key=str(key))[0]) for key in range(10_000)]
    assert np.abs(np.bincount(firsts, minlength=8) - 1250).max() < 165


def test_an_epoch_reads_every_document_once_and_whole(tmp_path):
    stream = _stream(tmp_path, ELEVEN)
    assert sorted(_epoch(stream, 0)) == [Span(number, 0, len(tokens)) for number, tokens in enumerate(ELEVEN)]


def test_the_documents_of_a_block_are_read_together(tmp_path):
    blocks = [span.document // 4 for span in _epoch(_stream(tmp_path, ELEVEN), 0)]
    assert len([block for block, before in zip(blocks, [None, *blocks], strict=False) if block != before]) == 3


@pytest.mark.parametrize("block_documents", [1, 11])  # only the blocks, only their documents can be permuted
def test_each_epoch_has_its_own_order(tmp_path, block_documents):
    stream = _stream(tmp_path, ELEVEN, block_documents=block_documents)
    assert _epoch(stream, 0) != _epoch(stream, 1)


@pytest.mark.parametrize("block_documents", [1, 11])
def test_each_seed_has_its_own_order(tmp_path, block_documents):
    first = _stream(tmp_path, ELEVEN, block_documents=block_documents)
    second = _stream(tmp_path, ELEVEN, block_documents=block_documents, seed=2)
    assert _epoch(first, 0) != _epoch(second, 0)


@pytest.mark.parametrize("block_documents", [2, 40])
def test_empty_documents_and_blocks_are_in_no_span(tmp_path, block_documents):
    documents = [[1, 0] if document % 5 == 0 else [] for document in range(20)]
    stream = _stream(tmp_path, documents, block_documents=block_documents)
    assert sorted(_epoch(stream, 0)) == [Span(0, 0, 2), Span(5, 0, 2), Span(10, 0, 2), Span(15, 0, 2)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(min_value=0, max_value=6), min_size=1, max_size=12).filter(sum),
    block_documents=st.integers(min_value=1, max_value=5),
    data=st.data(),
)
def test_any_stretch_is_the_same_as_that_stretch_of_the_whole_stream(tmp_path_factory, lengths, block_documents, data):
    documents = [[1] * length for length in lengths]
    stream = _stream(tmp_path_factory.mktemp("stream"), documents, block_documents=block_documents)
    end = 4 * sum(lengths)
    whole = _places(stream.spans(0, end))
    start = data.draw(st.integers(min_value=0, max_value=end - 1))
    count = data.draw(st.integers(min_value=1, max_value=end - start))
    spans = stream.spans(start, count)
    assert _places(spans) == whole[start : start + count]
    assert all(span.length > 0 for span in spans)


def _places(spans):
    """The (document, offset) of each token."""
    return [(document, start + token) for document, start, length in spans for token in range(length)]


def _sources(folder, *block_counts):
    """Sources of some blocks of 4 documents of 2 tokens; an expanded block takes 8 bytes, 1 + 1 a document."""
    sources = []
    for number, blocks in enumerate(block_counts):
        manifest = write_source(folder / str(number), [[number + 1, 0]] * 4 * blocks, block_documents=4)
        sources.append(Documents(str(folder / str(number)), source="s", data_id=manifest.data_id))
    return sources


def test_so_many_blocks_are_kept_as_a_window_touches(tmp_path):
    one, many = _sources(tmp_path, 1, 9)
    assert blocks_to_hold([one, many], window_tokens=16) == [1, 3]  # two blocks are 16 tokens; it begins within one
    assert blocks_to_hold([many], window_tokens=17) == [4]


def test_all_sources_together_keep_no_more_than_there_is_room_for(tmp_path):
    sources = _sources(tmp_path, 1, 9, 5)
    assert blocks_to_hold(sources, window_tokens=32, held_bytes=8 * 11) == [1, 5, 5]
    assert blocks_to_hold(sources, window_tokens=32, held_bytes=8 * 10) == [1, 4, 4]
    assert blocks_to_hold(sources, window_tokens=32, held_bytes=8 * 3) == [1, 1, 1]
    assert blocks_to_hold(sources, window_tokens=32, held_bytes=0) == [1, 1, 1]


def test_a_block_is_expanded_once_while_it_is_kept_and_again_when_it_is_not(tmp_path):
    (documents,) = _sources(tmp_path, 3)
    for held, times in ((3, 3), (1, 6)):
        stream = TokenStream(documents, seed=1, blocks_held=held)
        for position in (0, 8, 16, 0, 8, 16):
            stream.spans(position, 8)
        assert stream._block.cache_info().misses == times
