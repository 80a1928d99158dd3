"""Tokens counted are those that would be written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from data_tools.count import count
from data_tools.progress import NoProgress
from data_tools.tokenize import TokenizeJob, tokenize

WriteLines = Callable[..., Path]


def test_the_count_is_what_tokenize_writes(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    turns = [{"from": "human", "value": "b"}, {"from": "gpt", "value": "~"}]
    source = write_lines({"text": "the cat"}, b"{", {"conversations": turns}, {"text": ""})
    job = TokenizeJob((source,), tiny_tokenizer, source.parent / "out", append_eod=True, on_error="skip")
    counted = count(job, NoProgress())
    assert [path.name for path in source.parent.iterdir()] == ["in.jsonl"]
    manifest = tokenize(job, NoProgress()).manifest
    assert (counted.documents, counted.tokens) == (manifest.documents, manifest.tokens)
    assert counted.documents == 2
    assert counted.rejected == manifest.rejected_by_reason == {"malformed": 1, "empty": 1}


def test_a_text_of_which_the_tokenizer_makes_no_token_is_counted_as_tokenize_counts_it(
    tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    shutil.copytree(tiny_tokenizer, folder := tmp_path / "strips")
    strips = {"normalizer": {"type": "Replace", "pattern": {"String": "~"}, "content": ""}}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | strips))
    source = write_lines({"text": "the cat"}, {"text": "~"})
    job = TokenizeJob((source,), folder, tmp_path / "out", append_eod=True, on_error="skip")
    counted, manifest = count(job, NoProgress()), tokenize(job, NoProgress()).manifest
    assert (counted.documents, counted.tokens) == (manifest.documents, manifest.tokens)
    assert counted.rejected == manifest.rejected_by_reason == {"empty": 1}
