"""Shards merged are what one job would have written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import DataError, UsageError
from data_tools.manifest import SourceFile, write_manifest
from data_tools.merge import merge
from data_tools.origin import ORIGIN
from data_tools.progress import NoProgress
from data_tools.tokenize import TokenizeJob, tokenize
from data_tools.verify import verify

WriteLines = Callable[..., Path]


@pytest.fixture
def jobs(tiny_tokenizer: Path, write_lines: WriteLines) -> list[TokenizeJob]:
    """Two jobs on a file each, done."""
    first = write_lines({"text": "the cat", "id": "a"}, b"{", {"text": "sat", "id": "b"}, name="1.jsonl")
    second = write_lines({"text": "mat", "id": "c"}, name="2.jsonl")
    jobs = [
        TokenizeJob((path,), tiny_tokenizer, path.with_suffix(""), append_eod=True, on_error="skip")
        for path in (first, second)
    ]
    for job in jobs:
        tokenize(job, NoProgress())
    return jobs


def _content(source: SourceFile) -> SourceFile:
    """Without what is not recorded of a file that changed just before it was read."""
    return replace(source, ctime_ns=0, inode=0)


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_the_whole_is_what_one_job_writes(
    jobs: list[TokenizeJob], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    folder = jobs[0].output.parent
    both = replace(jobs[0], inputs=(jobs[0].inputs[0], jobs[1].inputs[0]), output=folder / "both")
    expected = tokenize(both, NoProgress()).manifest
    monkeypatch.setattr("data_tools.merge._TOKENS_AT_ONCE", at_once)
    merged = merge([job.output for job in jobs], folder / "merged", NoProgress()).manifest
    assert merged.data_id == expected.data_id
    assert merged.origin_sha256 == expected.origin_sha256
    assert (merged.documents, merged.rejected_by_reason) == (3, {"malformed": 1})
    assert [_content(source) for source in merged.sources] == [_content(source) for source in expected.sources]
    assert np.fromfile(folder / "merged.origin", ORIGIN)["source"].tolist() == [0, 0, 1]
    assert verify(folder / "merged", deep=True) == merged


def test_merging_again_changes_nothing_and_another_dataset_is_not_overwritten(jobs: list[TokenizeJob]) -> None:
    out = jobs[0].output.parent / "merged"
    prefixes = [job.output for job in jobs]
    assert [merge(prefixes, out, NoProgress()).was_done for _ in range(2)] == [False, True]
    with pytest.raises(DataError, match="merged: holds another dataset; give --overwrite"):
        merge(prefixes[:1], out, NoProgress())
    assert merge(prefixes[:1], out, NoProgress(), overwrite=True).manifest.documents == 2


def test_parts_made_again_with_as_many_tokens_of_the_same_files_are_another_dataset(
    tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    source = write_lines({"text": "ab", "body": "cd"})
    part = TokenizeJob((source,), tiny_tokenizer, tmp_path / "part")
    tokenize(part, NoProgress())
    assert merge([part.output], tmp_path / "whole", NoProgress()).manifest.tokens == 2
    assert tokenize(replace(part, key="body", overwrite=True), NoProgress()).manifest.tokens == 2
    with pytest.raises(DataError, match="whole: holds another dataset; give --overwrite"):
        merge([part.output], tmp_path / "whole", NoProgress())


def test_the_tokens_of_each_domain_are_those_of_all_parts(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    jobs = []
    for name, domain, answer in [("1", "math", "abc"), ("2", "code", "a"), ("3", "math", "ab")]:
        turns = [{"from": "human", "value": "~"}, {"from": "gpt", "value": answer}]
        path = write_lines({"conversations": turns, "domain": domain}, name=f"{name}.jsonl")
        jobs.append(TokenizeJob((path,), tiny_tokenizer, path.with_suffix(""), adapter="openthoughts3"))
    parts = [tokenize(job, NoProgress()).manifest for job in jobs]
    assert [list(part.tokens_by_domain or ()) for part in parts] == [["math"], ["code"], ["math"]]
    write_manifest(jobs[2].output, replace(parts[2], tokens_by_domain=None))  # as an earlier version wrote it
    merged = merge([job.output for job in jobs], jobs[0].output.parent / "merged", NoProgress()).manifest
    assert merged.tokens_by_domain == {"code": parts[1].tokens, "math": parts[0].tokens + parts[2].tokens}


def test_a_part_is_not_written_over(jobs: list[TokenizeJob]) -> None:
    prefixes = [job.output for job in jobs]
    before = [path.read_bytes() for path in sorted(prefixes[0].parent.glob("1.*"))]
    with pytest.raises(UsageError, match="1: is one of the parts and would be written too; choose another --output"):
        merge(prefixes, prefixes[0], NoProgress(), overwrite=True)
    assert [path.read_bytes() for path in sorted(prefixes[0].parent.glob("1.*"))] == before


def test_parts_of_other_jobs_are_not_mixed(jobs: list[TokenizeJob]) -> None:
    other = replace(jobs[1], append_eod=False, output=jobs[1].output.parent / "other")
    tokenize(other, NoProgress())
    with pytest.raises(DataError, match="other: append_eod: False, but .*1 has True"):
        merge([jobs[0].output, other.output], other.output.parent / "merged", NoProgress())


def test_a_damaged_part_is_refused_and_nothing_is_left(jobs: list[TokenizeJob]) -> None:
    path = Path(f"{jobs[1].output}.bin")
    path.write_bytes(b"\x07" + path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"2\.bin: sha256"):
        merge([job.output for job in jobs], path.parent / "merged", NoProgress())
    assert not list(path.parent.glob("merged*"))


def test_one_dataset_named_twice_would_repeat_its_documents(jobs: list[TokenizeJob], tmp_path: Path) -> None:
    first = jobs[0].output
    with pytest.raises(DataError, match=r"1: holds the documents of .*1, which would be there twice; drop one"):
        merge([first, jobs[1].output, first], tmp_path / "out", NoProgress())
    assert not list(tmp_path.glob("out*"))


def test_parts_of_equal_text_from_two_places_are_no_repetition(
    tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    parts = []
    for name in ("a", "b"):
        source = write_lines({"text": "the cat"}, name=f"{name}.jsonl")
        parts.append(source.with_suffix(""))
        tokenize(TokenizeJob((source,), tiny_tokenizer, parts[-1]), NoProgress())
    assert merge(parts, tmp_path / "out", NoProgress()).manifest.documents == 2


def test_the_whole_says_how_many_documents_of_all_parts_were_compared(jobs: list[TokenizeJob], tmp_path: Path) -> None:
    engine = merge([job.output for job in jobs], tmp_path / "out", NoProgress()).manifest.engine
    assert engine is not None
    assert (engine.name, engine.compared) == ("gigatoken", 3)
