"""Packs of a dataset on the disk: their files, what they count, what other trainers get."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from data_tools.chat import ChatJob, chat
from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import read_masks
from data_tools.pack import PackJob, PackResult, pack_dataset
from data_tools.pack_index import (
    PackManifest,
    index_bytes,
    pack_manifest_path,
    packs_path,
    read_pack_manifest,
    read_packs,
)
from data_tools.packing import pack
from data_tools.progress import NoProgress
from data_tools.selection import Where
from data_tools.verify_packs import verify_packs

WriteLines = Callable[..., Path]
ANSWERS = ["a", "the cat", "<think>\nthe cat sat on the mat xyz xyz xyz\n</think>\n\nthere", "b" * 20]


@pytest.fixture
def data(tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path) -> Path:
    """Four conversations of 13, 13, 42 and 32 tokens or so."""
    rows = [
        {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": answer}]} for answer in ANSWERS
    ]
    path = write_lines(*rows)
    job = ChatJob(inputs=(path,), tokenizer=tiny_tokenizer, output=tmp_path / "chat", adapter="sharegpt")
    chat(job, NoProgress())
    return job.output


@pytest.fixture
def job(data: Path, tmp_path: Path) -> PackJob:
    return PackJob(data=data, output=tmp_path / "packs" / "p", length=int(IndexedReader(data).lengths.max()))


def run(job: PackJob, **changes: Any) -> PackResult:
    return pack_dataset(dataclasses.replace(job, **changes))


def test_the_file_is_as_large_as_described() -> None:
    packing = pack(np.array([6, 5, 4]), length=9)
    assert (packing.packs, len(packing.pieces)) == (2, 3)
    assert len(index_bytes(packing)) == 128


def test_packs_read_back_and_the_manifest_accounts_for_every_token(job: PackJob, data: Path) -> None:
    manifest = run(job).manifest
    first_piece, pieces = read_packs(job.output)
    lengths = IndexedReader(data).lengths
    assert sorted(pieces.conversation.tolist()) == [0, 1, 2, 3]
    assert pieces.lengths.tolist() == lengths[pieces.conversation].tolist()
    assert first_piece[-1] == len(pieces) == manifest.pieces
    assert manifest == read_pack_manifest(job.output)
    assert manifest.packed_tokens == manifest.tokens == lengths.sum()
    assert manifest.packed_trained_tokens == manifest.trained_tokens
    assert manifest.padding == manifest.packs * job.length - manifest.tokens
    assert (job.output.parent / manifest.data).resolve() == data.resolve()


def test_trained_tokens_that_are_cut_off_are_counted(job: PackJob, data: Path) -> None:
    masks, lengths = read_masks(data), IndexedReader(data).lengths.tolist()
    before = [int(masks.mask(number, tokens=size)[:20].sum()) for number, size in enumerate(lengths)]
    manifest = run(job, length=20, overlong="truncate").manifest
    assert manifest.packed_trained_tokens == sum(before) < manifest.trained_tokens
    starved = run(job, length=7, overlong="truncate", overwrite=True).manifest
    assert (starved.packed_trained_tokens, starved.untrained_pieces) == (0, 4)


def test_trimmed_thinking_keeps_the_answer(job: PackJob, data: Path) -> None:
    length = job.length - 10
    run(job, length=length, overlong="trim-thinking")
    _, pieces = read_packs(job.output)
    piece = pieces.conversation.tolist().index(2)
    skipped = IndexedReader(data)[2][pieces.skip_start[piece] : pieces.skip_stop[piece]]
    assert len(skipped) == 10
    assert pieces.skip_stop[piece] == read_masks(data).thinking[2, 1]
    assert pieces.stop[piece] == len(IndexedReader(data)[2])


def test_a_finished_job_is_recognised_and_another_is_refused(job: PackJob) -> None:
    assert [run(job).was_done, run(job).was_done] == [False, True]
    with pytest.raises(DataError, match="algorithm: it has bfd, asked for concat"):
        run(job, algorithm="concat")
    packs_path(job.output).write_bytes(b"x" + packs_path(job.output).read_bytes()[1:])
    with pytest.raises(DataError, match="is not the file that its manifest describes"):
        run(job)
    assert not run(job, overwrite=True).was_done


def test_packs_of_other_data_are_refused(job: PackJob, data: Path) -> None:
    run(job)
    manifest = json.loads(pack_manifest_path(job.output).read_text())
    pack_manifest_path(job.output).write_text(json.dumps({**manifest, "data_id": "0" * 64}))
    with pytest.raises(DataError, match="data_id: it has 0000"):
        run(job)


@pytest.mark.parametrize(("option", "value"), [("length", 90), ("pad_multiple", 2), ("overlong", "drop"), ("seed", 1)])
def test_another_option_is_another_job(job: PackJob, option: str, value: object) -> None:
    run(job)
    with pytest.raises(DataError, match=f"{option}: it has .*, asked for {value}"):
        run(job, **{option: value})


def test_another_form_is_another_job(job: PackJob) -> None:
    run(job)
    with pytest.raises(DataError, match="--out: it has index, asked for bridge-parquet"):
        run(job, form="bridge-parquet")


def test_packs_of_another_version_are_another_job(job: PackJob) -> None:
    run(job)
    manifest = json.loads(pack_manifest_path(job.output).read_text())
    pack_manifest_path(job.output).write_text(json.dumps({**manifest, "versions": {"pack": "0"}}))
    with pytest.raises(DataError, match="version of pack: it has 0, asked for "):
        run(job)


def test_too_long_conversations_write_nothing_unless_something_is_said(job: PackJob) -> None:
    with pytest.raises(
        DataError, match=r"raise --length, or give --overlong(.|\n)*The longest is document 2, .*\.jsonl row 3"
    ):
        run(job, length=job.length - 1)
    assert list(job.output.parent.iterdir()) == []


def test_concat_leaves_nothing_out_so_it_takes_no_rule_for_that(job: PackJob) -> None:
    with pytest.raises(UsageError, match="--overlong: drop: --algo concat cuts at pack ends"):
        run(job, algorithm="concat", overlong="drop")


@pytest.mark.parametrize("pad", [1, 4])
def test_bridge_gets_ids_and_a_mask_of_next_tokens(job: PackJob, data: Path, pad: int) -> None:
    length = -(-job.length // pad) * pad
    manifest = run(job, form="bridge-parquet", length=length, pad_multiple=pad).manifest
    rows = parquet.read_table(job.output.with_suffix(".parquet")).to_pylist()
    first_piece, pieces = read_packs(job.output)
    assert len(rows) == manifest.packs
    for row, first, end in zip(rows, first_piece[:-1].tolist(), first_piece[1:].tolist(), strict=True):
        bounds = [*row["seq_start_id"], len(row["input_ids"])]
        assert sum(end - start - 1 for start, end in itertools.pairwise(bounds)) <= length
        for piece, start, stop in zip(range(first, end), bounds[:-1], bounds[1:], strict=True):
            document = int(pieces.conversation[piece])
            ids = IndexedReader(data)[document].tolist()
            mask = read_masks(data).mask(document, tokens=len(ids)).astype(int).tolist()
            assert (stop - start - 1) % pad == 0
            assert row["input_ids"][start:stop] == ids + [0] * (stop - start - len(ids))
            assert row["loss_mask"][start:stop] == mask[1:] + [0] * (stop - start - len(ids) + 1)


def test_megatron_gets_whole_conversations_that_it_can_tell_apart(job: PackJob) -> None:
    run(job, form="megatron-jsonl")
    first_piece, pieces = read_packs(job.output)
    lines = [json.loads(line)["messages"] for line in job.output.with_suffix(".jsonl").read_text().splitlines()]
    for messages, first, end in zip(lines, first_piece[:-1], first_piece[1:], strict=True):
        documents = pieces.conversation[first:end].tolist()
        assert [message["role"] for message in messages] == ["system", "user", "assistant"] * len(documents)
        assert [message["content"] for message in messages[2::3]] == [ANSWERS[document] for document in documents]


def test_megatron_gets_no_cut_conversations(job: PackJob) -> None:
    with pytest.raises(UsageError, match="whole conversations only"):
        run(job, form="megatron-jsonl", overlong="truncate", length=20)
    assert list(job.output.parent.iterdir()) == []


@pytest.mark.parametrize("field", PackManifest.model_fields)
def test_the_reference_page_names_every_field(field: str) -> None:
    page = (Path(__file__).parents[3] / "docs/reference/chat-and-packs.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert any(f"`{field}`" in row for row in rows)


def test_megatron_gets_no_conversation_whose_system_speaks_twice(
    job: PackJob, tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    roles = ("user", "assistant", "system", "user", "assistant")
    path = write_lines({"messages": [{"role": role, "content": "a"} for role in roles]}, name="twice.jsonl")
    chat(ChatJob((path,), tiny_tokenizer, tmp_path / "twice"), NoProgress())
    with pytest.raises(DataError, match=r"twice\.jsonl:1: --out megatron-jsonl: a system turn that is not the first"):
        run(job, data=tmp_path / "twice", length=100, form="megatron-jsonl")


def test_megatron_gets_the_rows_that_were_kept(tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": said}, {"messages": said[:1]}, {"messages": [said[0], {"role": "assistant", "content": "b"}]}]
    path = write_lines(*rows)
    where = Where.parse("answer_tokens == 1")
    chat(ChatJob((path,), tiny_tokenizer, tmp_path / "c", on_error="skip", where=where), NoProgress())
    job = PackJob(data=tmp_path / "c", output=tmp_path / "p", length=22, form="megatron-jsonl", algorithm="bfd")
    assert run(job).manifest.pieces == 2
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["messages"][2]["content"] for line in lines) == ["a", "b"]
    path.write_text(path.read_text().replace('"a"', '"c"'))
    with pytest.raises(DataError, match="is not the file that the dataset was made of"):
        run(job, output=tmp_path / "again")


def test_files_of_somebody_else_are_not_overwritten(job: PackJob, data: Path) -> None:
    own = job.output.with_suffix(".jsonl")
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(DataError, match=r"p\.jsonl without a manifest; give --overwrite"):
        run(job, form="megatron-jsonl")
    assert own.read_text() == "mine"
    source = data.parent / "in.jsonl"
    with pytest.raises(UsageError, match=r"in\.jsonl: is what .* was made of"):
        run(job, form="megatron-jsonl", output=source.with_suffix(""), overwrite=True)


def test_packs_as_they_were_written_are_right(job: PackJob) -> None:
    for changes in ({}, {"length": job.length - 10, "overlong": "trim-thinking"}, {"length": 9, "algorithm": "concat"}):
        manifest = run(job, overwrite=True, **changes).manifest
        assert verify_packs(job.output, deep=True) == manifest


def test_a_changed_index_is_found(job: PackJob) -> None:
    run(job)
    path = packs_path(job.output)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match="is not the file that its manifest describes"):
        verify_packs(job.output, deep=True)


@pytest.mark.parametrize(
    ("column", "number", "said"),
    [
        ("conversation", 9, "a piece is of none of the 4 documents"),
        ("stop", 999, "is not within its .* tokens"),
        ("conversation", 3, "tokens of document 3 are in two pieces"),
    ],
)
def test_pieces_beyond_their_documents_are_found(job: PackJob, column: str, number: int, said: str) -> None:
    run(job, length=200, algorithm="concat")
    _, pieces = read_packs(job.output)
    changed = {
        name: getattr(pieces, name).copy() for name in ("conversation", "start", "stop", "skip_start", "skip_stop")
    }
    changed[column][0] = number
    if column == "stop":
        changed["skip_start"][0] = changed["skip_stop"][0] = number
    columns = b"".join(changed[name].astype("<i4").tobytes() for name in ("start", "stop", "skip_start", "skip_stop"))
    raw = packs_path(job.output).read_bytes()
    size = 24 * len(pieces)
    packs_path(job.output).write_bytes(raw[:-size] + changed["conversation"].astype("<i8").tobytes() + columns)
    with pytest.raises(DataError, match=said):
        verify_packs(job.output, deep=False)


def test_packs_of_other_data_are_found(job: PackJob, data: Path) -> None:
    run(job)
    manifest = json.loads(pack_manifest_path(job.output).read_text())
    pack_manifest_path(job.output).write_text(json.dumps({**manifest, "data_id": "0" * 64}))
    with pytest.raises(DataError, match="data_id of the dataset: found .* its manifest says 0000"):
        verify_packs(job.output, deep=False)


@pytest.mark.parametrize(
    ("claim", "said"), [({"length": 5}, "positions of 5"), ({"packed_trained_tokens": 1}, "says 1")]
)
def test_wrong_claims_about_packs_are_found(job: PackJob, claim: dict[str, int], said: str) -> None:
    run(job)
    manifest = json.loads(pack_manifest_path(job.output).read_text())
    pack_manifest_path(job.output).write_text(json.dumps({**manifest, **claim}))
    with pytest.raises(DataError, match=said):
        verify_packs(job.output, deep=False)
