"""What is wrong in a dataset is found; a pencil can say what is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.chat import ChatJob, chat
from data_tools.errors import DataError
from data_tools.loss_mask import mask_path, read_masks
from data_tools.manifest import read_manifest, write_manifest
from data_tools.origin import ORIGIN
from data_tools.progress import NoProgress
from data_tools.shards import freeze_plan, make_plan, parse_task, tokenize_shards
from data_tools.tokenize import TokenizeJob, tokenize
from data_tools.verify import prefixes_of, verify

WriteLines = Callable[..., Path]


@pytest.fixture
def prefix(tiny_tokenizer: Path, write_lines: WriteLines) -> Path:
    """Documents of 1, 2 and 1 characters, an id each, and the end-of-document id 0 after each: 7 tokens."""
    source = write_lines({"text": "a"}, {"text": "bc"}, {"text": "~"})
    tokenize(TokenizeJob((source,), tiny_tokenizer, source.parent / "out", append_eod=True), NoProgress())
    return source.parent / "out"


def change_bin(prefix: Path, position: int, number: int, **claims: object) -> None:
    """Replaces one token, and makes the manifest agree: what is left to find is the token itself."""
    path = Path(f"{prefix}.bin")
    ids = np.fromfile(path, "<u2")
    ids[position] = number
    ids.tofile(path)
    claim(prefix, bin_sha256=hashlib.sha256(path.read_bytes()).hexdigest(), max_token_id=int(ids.max()), **claims)


def claim(prefix: Path, **claims: object) -> None:
    write_manifest(prefix, replace(read_manifest(prefix), **claims))


def test_a_dataset_as_it_was_written_is_right(prefix: Path) -> None:
    assert verify(prefix, deep=True) == read_manifest(prefix)


def test_a_changed_byte_is_found_by_the_deep_check_alone(prefix: Path) -> None:
    path = Path(f"{prefix}.bin")
    path.write_bytes(b"\x07" + path.read_bytes()[1:])
    verify(prefix, deep=False)
    with pytest.raises(DataError, match=r"out\.bin: sha256: found [0-9a-f]{64}, its manifest says"):
        verify(prefix, deep=True)


def test_a_missing_end_of_document_is_found(prefix: Path) -> None:
    change_bin(prefix, 6, 50)
    with pytest.raises(DataError, match=r"out\.bin: 1 of 3 documents do not end with id 0"):
        verify(prefix, deep=True)


def test_an_end_inside_a_document_is_found_unless_text_may_spell_it(prefix: Path) -> None:
    change_bin(prefix, 2, 0)
    with pytest.raises(DataError, match="id 0 stands 1 times inside a document"):
        verify(prefix, deep=True)
    claim(prefix, special_tokens="parse")
    verify(prefix, deep=True)


def test_an_id_beyond_the_vocabulary_is_found(prefix: Path) -> None:
    change_bin(prefix, 0, 288)
    with pytest.raises(DataError, match="id 288 is not below vocab_size 288"):
        verify(prefix, deep=True)


def test_a_wrong_largest_id_is_found(prefix: Path) -> None:
    claim(prefix, max_token_id=287)
    with pytest.raises(DataError, match="max_token_id: found .*, its manifest says 287"):
        verify(prefix, deep=True)


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        (34, "an offset is not the sum of the lengths before it"),  # length of the first sequence
        (34 + 12 + 8, "an offset is not the sum of the lengths before it"),  # offset of the second
        (34 + 12 + 24 + 24, "the documents do not divide the sequences"),  # the last document index
    ],
)
def test_an_index_that_contradicts_itself_is_found_without_reading_tokens(prefix: Path, offset: int, said: str) -> None:
    path = Path(f"{prefix}.idx")
    content = bytearray(path.read_bytes())
    content[offset] += 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        verify(prefix, deep=False)


def test_wrong_tokens_per_block_are_found(prefix: Path) -> None:
    claim(prefix, block_documents=2)
    with pytest.raises(DataError, match=r"tokens_per_block: found \[5, 2\], its manifest says \[7\]"):
        verify(prefix, deep=False)


def test_wrong_tokens_by_domain_are_found(prefix: Path) -> None:
    claim(prefix, tokens_by_domain={"general": 4, "math": 3})
    with pytest.raises(
        DataError, match=r"tokens_by_domain: found \{'general': 7\}, its manifest says \{'general': 4, 'math': 3\}"
    ):
        verify(prefix, deep=True)


def test_an_origin_of_no_domain_is_found(prefix: Path) -> None:
    path = Path(f"{prefix}.origin")
    origins = np.fromfile(path, ORIGIN)
    origins["domain"][1] = 9
    origins.tofile(path)
    claim(prefix, origin_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(DataError, match=r"out\.origin: a document is of domain 9, there are 4"):
        verify(prefix, deep=True)


def test_shards_that_are_not_all_finished_are_refused_with_their_number(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    first, second = write_lines({"text": "a"}), write_lines({"text": "b"}, name="more.jsonl")
    out = first.parent / "shards"
    job = TokenizeJob((first, second), tiny_tokenizer, out)
    plan = make_plan(job, shard_bytes=1000)
    freeze_plan(out, plan, overwrite=False)
    tokenize_shards(job, plan, parse_task("0/2"), NoProgress())
    with pytest.raises(DataError, match=r"shards: 1 of 2 shards are not finished, shard-00001 the first; run the same"):
        prefixes_of(out)


def test_a_prefix_that_is_no_folder_of_shards_is_one_dataset(prefix: Path) -> None:
    assert prefixes_of(prefix) == [prefix]


@pytest.fixture
def chats(tiny_tokenizer: Path, write_lines: WriteLines) -> Path:
    """Two conversations with a run of trained tokens each."""
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ab"}]
    source = write_lines({"messages": said}, {"messages": said})
    chat(ChatJob((source,), tiny_tokenizer, source.parent / "chats"), NoProgress())
    return source.parent / "chats"


def test_conversations_as_they_were_written_are_right(chats: Path) -> None:
    assert verify(chats, deep=True) == read_manifest(chats)


def test_trained_tokens_up_to_the_end_of_a_document_are_right(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    """Two conversations of 3 tokens, a question and an answer of two."""
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ab"}]
    source = write_lines({"messages": said}, {"messages": said})
    template = source.parent / "bare.jinja"
    template.write_text(
        "{% for turn in messages %}{% if turn.role == 'user' %}{{ turn.content }}{% else %}"
        "{% generation %}{{ turn.content }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    out = source.parent / "bare"
    manifest = chat(ChatJob((source,), tiny_tokenizer, out, chat_template=template), NoProgress()).manifest
    assert read_masks(out).runs.tolist() == [[1, 3], [1, 3]]
    assert manifest.tokens == 6
    assert verify(out, deep=True) == manifest


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ([[5, 5], [5, 8]], "is empty, not behind the last, or not within"),
        ([[5, 8], [5, 99]], r"run 5\.\.99 of conversation 1 is empty"),
        ([[5, 8], [-1, 8]], r"run -1\.\.8 of conversation 1"),
        ([[5, 6], [5, 8]], "trained_tokens: found"),
    ],
)
def test_a_mask_that_leaves_its_document_is_found(chats: Path, run: list[list[int]], said: str) -> None:
    masks = read_masks(chats)
    content = replace(masks, runs=np.array(run, np.int32)).to_bytes()
    mask_path(chats).write_bytes(content)
    record = read_manifest(chats).chat
    assert record is not None
    claim(chats, chat=replace(record, mask_sha256=hashlib.sha256(content).hexdigest()))
    with pytest.raises(DataError, match=said):
        verify(chats, deep=True)


def test_an_origin_of_no_source_is_found(prefix: Path) -> None:
    path = Path(f"{prefix}.origin")
    origins = np.fromfile(path, ORIGIN)
    origins["source"][1] = 1
    origins.tofile(path)
    claim(prefix, origin_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(DataError, match=r"out\.origin: a document is of source 1, there are 1"):
        verify(prefix, deep=True)


def test_a_document_of_the_other_split_is_found(prefix: Path) -> None:
    claim(prefix, hold_out_percent=99.9)
    with pytest.raises(DataError, match=r"out\.origin: document 0 is not of split train"):
        verify(prefix, deep=True)
