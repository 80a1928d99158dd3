"""Tokens counted are those that would be written."""

from __future__ import annotations

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
