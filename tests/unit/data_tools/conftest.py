"""Small inputs shared by the tests of data_tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.tokenizer import train

WriteLines = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 288 ids."""
    folder = tmp_path_factory.mktemp("tokenizer")
    corpus = folder / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": "the cat sat on the mat and the other cat sat there " * 20}) + "\n")
    train([corpus], "text", 288, folder / "tiny")
    return folder / "tiny"


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Writes records (or raw lines, given as bytes) to a JSONL file of `tmp_path`."""

    def write(*records: object, name: str = "in.jsonl") -> Path:
        path = tmp_path / name
        lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write
