"""Documents that a filter leaves out: counted, no rejects, part of what a job is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.count import count
from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.manifest import read_manifest, write_manifest
from data_tools.merge import merge
from data_tools.origin import ORIGIN
from data_tools.progress import NoProgress
from data_tools.selection import AnswerRule, Where
from data_tools.shards import Task, freeze_plan, make_plan, status, tokenize_shards, totals
from data_tools.tokenize import TokenizeJob, tokenize
from data_tools.verify import verify

WriteLines = Callable[..., Path]
ADAPTER = "nemotron-pretraining-sft-v1"


def talk(answer: str) -> dict[str, str]:
    """A row of the set's General folder; a digit is a token."""
    return {"text": f"<extra_id_1>User\n7?\n<extra_id_1>Assistant\n{answer}", "id": answer}


@pytest.fixture
def job(tiny_tokenizer: Path, write_lines: WriteLines) -> TokenizeJob:
    """Answers of 1, 3 and 4 tokens, of which more than 2 are asked for."""
    source = write_lines(talk("1"), talk("123"), talk("1234"))
    return TokenizeJob(
        (source,), tiny_tokenizer, source.parent / "out", adapter=ADAPTER, where=Where.parse("answer_tokens > 2")
    )


def answer_tokens(prefix: Path) -> list[int]:
    import numpy as np

    return [int(number) for number in np.fromfile(f"{prefix}.origin", ORIGIN)["answer_tokens"]]


def test_long_answers_are_taken_and_the_others_counted(job: TokenizeJob) -> None:
    manifest = tokenize(job, NoProgress()).manifest
    assert answer_tokens(job.output) == [3, 4]
    assert (manifest.documents, manifest.left_out, manifest.rejected) == (2, 1, 0)
    assert (manifest.where, manifest.answer_rule) == ("answer_tokens > 2", "")


def test_what_is_left_out_is_no_reject_and_needs_no_permission(job: TokenizeJob) -> None:
    tokenize(replace(job, on_error="skip", max_bad="0"), NoProgress())
    assert not job.rejects_path.exists()


def test_the_length_of_the_text_leaves_the_end_of_document_out(job: TokenizeJob) -> None:
    by_text = replace(job, append_eod=True, where=Where.parse("text_tokens < 6"))  # 7, ?, two line ends, 1
    tokenize(by_text, NoProgress())
    assert answer_tokens(job.output) == [1]
    assert len(IndexedReader(job.output)[0]) == 5 + 1


def test_a_row_without_turns_is_refused_and_a_rule_finds_its_answer(job: TokenizeJob, write_lines: WriteLines) -> None:
    write_lines({"text": "input: 1 output: 12"}, {"text": "input: 1 output: 123"}, {"text": "no mark"})
    with pytest.raises(DataError, match=r"in\.jsonl:1: no answer: .* give --answer-rule after:REGEX"):
        tokenize(job, NoProgress())
    ruled = replace(job, answer_rule=AnswerRule.parse("after: output: "), on_error="skip")
    manifest = tokenize(ruled, NoProgress()).manifest
    assert answer_tokens(job.output) == [3]
    assert (manifest.left_out, manifest.rejected_by_reason) == (1, {"no answer": 1})
    assert manifest.answer_rule == "after: output: "
    assert json.loads(job.rejects_path.read_text())["line"] == 3


def test_another_filter_is_another_job_and_another_spelling_is_not(job: TokenizeJob) -> None:
    tokenize(job, NoProgress())
    assert tokenize(replace(job, where=Where.parse(" answer_tokens>2")), NoProgress()).was_done
    with pytest.raises(DataError, match="--where: it has answer_tokens > 2, asked for answer_tokens > 3"):
        tokenize(replace(job, where=Where.parse("answer_tokens > 3")), NoProgress())
    with pytest.raises(DataError, match="--where: it has answer_tokens > 2, asked for all"):
        tokenize(replace(job, where=None), NoProgress())
    with pytest.raises(DataError, match="--answer-rule: it has none, asked for after:x"):
        tokenize(replace(job, answer_rule=AnswerRule.parse("after:x")), NoProgress())


def test_a_filter_that_takes_nothing_is_an_error_that_names_it(job: TokenizeJob) -> None:
    with pytest.raises(DataError, match="--where 'answer_tokens > 4' takes none of 3 documents"):
        tokenize(replace(job, where=Where.parse("answer_tokens > 4")), NoProgress())


def test_the_share_of_bad_records_counts_what_is_left_out_among_all(job: TokenizeJob, write_lines: WriteLines) -> None:
    write_lines(talk("1"), talk("2"), talk("123"), {"text": "no mark"})
    skips = replace(job, on_error="skip", max_bad="25%")
    manifest = tokenize(skips, NoProgress()).manifest
    assert (manifest.documents, manifest.left_out, manifest.rejected) == (1, 2, 1)
    with pytest.raises(DataError, match="--max-bad 24%"):
        tokenize(replace(skips, max_bad="24%", overwrite=True), NoProgress())


def test_held_out_documents_pass_the_filter_too_and_are_counted_once(job: TokenizeJob, write_lines: WriteLines) -> None:
    write_lines(*(talk(f"{number}") for number in range(80, 120)))  # 20 answers of two tokens, 20 of three
    result = tokenize(replace(job, hold_out_percent=50.0), NoProgress())
    assert result.held_out is not None
    assert 0 < result.held_out.documents == 20 - result.manifest.documents
    assert (result.manifest.left_out, result.held_out.left_out) == (20, 0)
    assert (result.manifest.where, result.held_out.where) == ("answer_tokens > 2",) * 2


def test_a_filter_and_compat_contradict_each_other(job: TokenizeJob) -> None:
    with pytest.raises(UsageError, match="--where: preprocess_data.py takes every document"):
        replace(job, compat="megatron", special_tokens="parse").check()
    ruled = replace(job, where=None, answer_rule=AnswerRule.parse("after:x"))
    with pytest.raises(UsageError, match="--answer-rule: preprocess_data.py takes every document"):
        replace(ruled, compat="megatron", special_tokens="parse").check()


def test_a_shard_of_which_nothing_is_taken_is_empty_and_done(job: TokenizeJob, write_lines: WriteLines) -> None:
    write_lines(talk("1"), talk("2"), talk("123"))
    plan = make_plan(job, shard_bytes=1)
    freeze_plan(job.output, plan, overwrite=False)
    tokenize_shards(job, plan, Task(), NoProgress())
    shards = status(job.output)
    assert [(shard.state, shard.manifest and shard.manifest.documents) for shard in shards] == [
        ("done", 0),
        ("done", 0),
        ("done", 1),
    ]
    assert totals(shards)["left out by --where"] == 2
    for shard in shards:
        verify(shard.prefix, deep=True)
    whole = merge([shard.prefix for shard in shards], job.output.parent / "whole", NoProgress()).manifest
    assert (whole.documents, whole.left_out, whole.where) == (1, 2, "answer_tokens > 2")


def test_a_plan_with_another_filter_is_another_plan(job: TokenizeJob) -> None:
    freeze_plan(job.output, make_plan(job, shard_bytes=1), overwrite=False)
    other = make_plan(replace(job, where=Where.parse("answer_tokens > 3")), shard_bytes=1)
    with pytest.raises(DataError, match=r"settings\.where differ"):
        freeze_plan(job.output, other, overwrite=False)


def test_the_count_is_that_of_the_filtered_dataset(job: TokenizeJob, write_lines: WriteLines) -> None:
    write_lines(talk("1"), talk("123"), {"text": "no mark"})
    counted = count(job, NoProgress())
    manifest = tokenize(replace(job, on_error="skip"), NoProgress()).manifest
    assert (counted.documents, counted.tokens) == (manifest.documents, manifest.tokens)
    assert (counted.left_out, counted.rejected) == (1, {"no answer": 1})


def test_a_document_that_does_not_pass_the_filter_is_found(job: TokenizeJob) -> None:
    manifest = tokenize(job, NoProgress()).manifest
    verify(job.output, deep=True)
    write_manifest(job.output, replace(manifest, where="answer_tokens > 3"))
    with pytest.raises(
        DataError, match="1 of 2 documents do not pass where = 'answer_tokens > 3', document 0 the first"
    ):
        verify(job.output, deep=True)
    assert read_manifest(job.output).where == "answer_tokens > 3"


def test_parts_with_rules_of_their_own_merge_and_keep_them(job: TokenizeJob, write_lines: WriteLines) -> None:
    parts = []
    for name, rule in (("math", "after: output: "), ("code", "after:A:"), ("more", "after:A:")):
        write_lines({"text": f"{name}{rule.removeprefix('after:')}123"})
        parts.append(job.output.parent / name)
        tokenize(replace(job, output=parts[-1], answer_rule=AnswerRule.parse(rule)), NoProgress())
    merged = merge(parts, job.output, NoProgress()).manifest
    assert (merged.documents, merged.answer_rule) == (3, "after: output:  | after:A:")
    other = job.output.parent / "other"
    tokenize(replace(job, output=other, where=None, answer_rule=AnswerRule.parse("after:A:")), NoProgress())
    with pytest.raises(DataError, match="where: , but .*math has answer_tokens > 2; merge what one job wrote"):
        merge([parts[0], other], job.output.parent / "none", NoProgress())
