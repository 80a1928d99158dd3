"""Raw records into keys and values."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.readers import BadRecord, Columns, hash_file, record_of


def test_a_line_and_a_row_are_both_records() -> None:
    assert record_of(b'{"text": "\xc3\xa9"}\r') == {"text": "é"}
    assert record_of({"text": "é"}) == {"text": "é"}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "blank"),
        (b" \t\r", "blank"),
        (b'{"text": "a"', "malformed"),
        (b'{"text": "a"} {"text": "b"}', "malformed"),
        (b'{"text": "\xff"}', "malformed"),
        (b'{"text": "\xed\xa0\x80"}', "malformed"),
        (b'{"text": "\\ud800"}', "malformed"),
        (b'{"text": NaN}', "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'["a"]', "not an object"),
        (b'"a"', "not an object"),
        (BadRecord("malformed", "of a row"), "malformed"),
    ],
)
def test_a_record_that_is_none_has_a_reason(raw: bytes | BadRecord, reason: str) -> None:
    with pytest.raises(BadRecord) as caught:
        record_of(raw)
    assert caught.value.reason == reason


def test_columns_that_are_not_there_are_named_with_those_that_are() -> None:
    columns = Columns(required=(("text",), ("prompt", "question")), optional=("id",))
    assert columns.names == {"text", "prompt", "question", "id"}
    columns.check(["question", "text"], place="a")
    with pytest.raises(DataError) as caught:
        columns.check(["b", "a"], place="x.parquet")
    assert str(caught.value) == (
        'x.parquet: has no column "text", "prompt" or "question"; it has: a, b; '
        "give the --adapter of this data set, or --key with the adapter text"
    )


def test_the_hash_of_a_file_comes_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert (hash_file(path).bytes, hash_file(path).sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    with pytest.raises(DataError, match=r"no: cannot be read: No such file or directory"):
        hash_file(tmp_path / "no")
