"""Documents and rows with their masks and where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.chat import ChatJob, chat
from data_tools.dataset import read_dataset
from data_tools.document_view import Documents, Origin, Rows, open_view
from data_tools.errors import DataError, UsageError
from data_tools.loss_mask import read_masks
from data_tools.pack import PackJob, pack_dataset
from data_tools.progress import NoProgress
from data_tools.shards import Task, freeze_plan, make_plan, tokenize_shards
from data_tools.tokenize import TokenizeJob, tokenize
from data_tools.tokenizer import Tokenizer

WriteLines = Callable[..., Path]


@pytest.fixture
def job(tiny_tokenizer: Path, write_lines: WriteLines) -> TokenizeJob:
    """Three documents of one, two and three digits."""
    source = write_lines(*({"text": text, "id": text} for text in ("1", "12", "123")))
    return TokenizeJob((source,), tiny_tokenizer, source.parent / "out")


@pytest.fixture
def packed(tiny_tokenizer: Path, write_lines: WriteLines) -> Path:
    """OUT of packs over two conversations: both in one row."""
    talk = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "<think>\n345\n</think>\n2"}]
    source = write_lines({"messages": talk}, {"messages": [talk[0], {"role": "assistant", "content": "67"}]})
    data = source.parent / "chat"
    chat(ChatJob(inputs=(source,), tokenizer=tiny_tokenizer, output=data), NoProgress())
    pack_dataset(PackJob(data=data, output=source.parent / "packs", length=256))
    return source.parent / "packs"


def test_a_document_says_where_it_came_from(job: TokenizeJob) -> None:
    tokenize(job, NoProgress())
    document = Documents(read_dataset(job.output))[1]
    assert document.ids.tolist() == Tokenizer.load(job.tokenizer).encode("12")
    assert document.trained is None
    id_hash = hashlib.sha256(b"12").hexdigest()[:16]
    assert document.origin == Origin(str(job.inputs[0]), 2, 0, id_hash, "general", "train", None)


def test_documents_are_numbered_through_all_shards(job: TokenizeJob) -> None:
    plan = make_plan(job, shard_bytes=1)
    freeze_plan(job.output, plan, overwrite=False)
    tokenize_shards(job, plan, Task(), NoProgress())
    documents = Documents(read_dataset(job.output))
    assert len(documents) == 3
    assert documents.lengths.tolist() == [1, 2, 3]
    assert [len(documents[number].ids) for number in range(3)] == [1, 2, 3]
    first, last = documents[0].origin, documents[2].origin
    assert first is not None
    assert last is not None
    assert (first.start, last.row) == (0, 1)
    assert last.start == 25 + 27  # bytes of the first two lines


@pytest.mark.parametrize("number", [-1, 3])
def test_a_number_that_is_not_there_is_an_index_error(job: TokenizeJob, number: int) -> None:
    tokenize(job, NoProgress())
    with pytest.raises(IndexError, match=r"is not in 0\.\.2"):
        Documents(read_dataset(job.output))[number]


def test_a_dataset_without_origins_says_nothing_of_them(job: TokenizeJob) -> None:
    tokenize(job, NoProgress())
    stored = read_dataset(job.output)
    shard = stored.shards[0]
    bare = replace(shard, manifest=replace(shard.manifest, origin_bytes=None))
    assert Documents(replace(stored, shards=(bare,)))[0].origin is None


def test_the_mask_of_a_conversation_comes_with_it(packed: Path) -> None:
    prefix = packed.parent / "chat"
    documents = Documents(read_dataset(prefix))
    masks = read_masks(prefix)
    for number in range(2):
        document = documents[number]
        assert document.trained is not None
        assert document.trained.tolist() == masks.mask(number, tokens=len(document.ids)).tolist()
    assert documents.trained is not None
    assert documents.trained.tolist() == [int(documents[number].trained.sum()) for number in range(2)]  # type: ignore[union-attr]


def test_a_row_is_its_pieces_in_order(packed: Path) -> None:
    rows = Rows(packed)
    (row,) = [rows[number] for number in range(len(rows))]
    assert sorted(piece.document.number for piece in row) == [0, 1]
    for piece in row:
        assert piece.ranges == ((0, len(piece.document.ids)),)
        assert piece.ids.tolist() == piece.document.ids.tolist()
        assert piece.trained is not None
        assert piece.trained.tolist() == piece.document.trained.tolist()  # type: ignore[union-attr]


def test_trimmed_thinking_leaves_two_ranges(packed: Path) -> None:
    data = packed.parent / "chat"
    whole = len(Documents(read_dataset(data))[0].ids)
    job = PackJob(data=data, output=packed, length=whole - 2, overlong="trim-thinking", overwrite=True)
    pack_dataset(job)
    rows = Rows(packed)
    (piece,) = [piece for number in range(len(rows)) for piece in rows[number] if piece.document.number == 0]
    (start, skipped), (kept, stop) = piece.ranges
    assert (start, kept - skipped, stop) == (0, 2, whole)
    assert piece.ids.tolist() == [*piece.document.ids[:skipped].tolist(), *piece.document.ids[kept:].tolist()]


def test_packs_of_another_dataset_are_refused(packed: Path, job: TokenizeJob) -> None:
    tokenize(replace(job, output=packed.parent / "chat", overwrite=True), NoProgress())
    with pytest.raises(DataError, match=r"packs: packs data [0-9a-f]{16}, but .* is now [0-9a-f]{16}; pack it again"):
        Rows(packed)


def test_a_prefix_opens_what_stands_there(packed: Path, job: TokenizeJob) -> None:
    assert isinstance(open_view(packed, wants_row=False), Rows)
    assert isinstance(open_view(packed.parent / "chat", wants_row=False), Documents)
    with pytest.raises(UsageError, match=r"--row: .*chat\.packs\.json: no such file"):
        open_view(packed.parent / "chat", wants_row=True)
