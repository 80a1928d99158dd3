"""JSON lines into text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.readers import BadRecord, JsonLines, hash_file, render_conversation, text_of_line, texts


def turn(speaker: object, value: object) -> dict[str, object]:
    return {"from": speaker, "value": value}


@pytest.mark.parametrize(
    ("line", "key", "text"),
    [
        (b'{"text": "a\\nb"}', "text", "a\nb"),
        (b'{"body": "b", "text": "t"}', "body", "b"),
        (b'{"text": "t", "conversations": []}', "text", "t"),
        (b'{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}', "text", "q\n\na"),
        (b'{"chat": [{"from": "human", "value": "q"}]}', "chat", "q"),
        ('{"text": "é"}\r'.encode(), "text", "é"),
    ],
)
def test_the_text_of_a_line_is_found(line: bytes, key: str, text: str) -> None:
    assert text_of_line(line, key) == text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "blank"),
        (b" \t\r", "blank"),
        (b'{"text": "a"', "malformed"),
        (b'{"text": "a"} {"text": "b"}', "malformed"),
        (b'{"text": "\xff"}', "malformed"),
        (b'{"text": "\\ud800"}', "malformed"),
        (b'{"text": NaN}', "malformed"),
        (b'["a"]', "not an object"),
        (b'"a"', "not an object"),
        (b'{"id": 1}', "missing key"),
        (b'{"text": null}', "not a string"),
        (b'{"text": 7}', "not a string"),
        (b'{"text": {"a": 1}}', "not a string"),
        (b'{"text": ""}', "empty"),
        (b'{"conversations": []}', "empty"),
        (b'{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": ""}]}', "empty"),
        (b'{"conversations": [{"from": "narrator", "value": "a"}]}', "bad conversation"),
        (b'{"conversations": [{"from": "gpt"}]}', "bad conversation"),
        (b'{"conversations": ["a"]}', "bad conversation"),
    ],
)
def test_a_line_without_text_has_a_reason(line: bytes, reason: str) -> None:
    with pytest.raises(BadRecord) as caught:
        text_of_line(line, "text")
    assert caught.value.reason == reason


def test_a_missing_key_is_told_with_the_keys_that_are_there() -> None:
    with pytest.raises(BadRecord, match='no key "text"; keys: body, id'):
        text_of_line(b'{"id": 1, "body": "a"}', "text")


def test_a_conversation_is_what_was_said_with_blank_lines_between() -> None:
    turns = [turn("system", "s"), turn("human", "q"), turn("gpt", "<think>\nt\n</think>\n\na")]
    assert render_conversation(turns) == "s\n\nq\n\n<think>\nt\n</think>\n\na"


@pytest.mark.parametrize("block_bytes", [1, 7, 10, 11, 1000])
@pytest.mark.parametrize("ending", [b"\n", b""])
def test_blocks_are_whole_lines_with_their_numbers(tmp_path: Path, block_bytes: int, ending: bytes) -> None:
    content = b"first\nsecond\n\nfourth line\nlast" + ending
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    source = JsonLines(path, block_bytes=block_bytes)
    numbered = [
        (block.first_line + offset, line) for block in source.blocks() for offset, line in enumerate(block.lines)
    ]
    assert numbered == [(1, b"first"), (2, b"second"), (3, b""), (4, b"fourth line"), (5, b"last")]
    assert source.seen().bytes == len(content)
    assert source.seen().sha256 == hashlib.sha256(content).hexdigest() == hash_file(path).sha256


def test_the_blocks_of_a_large_file_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 99 + b"\n" + (b"y" * 9 + b"\n") * 1000)
    assert max(block.size for block in JsonLines(path, block_bytes=50).blocks()) == 100


@pytest.mark.parametrize(
    ("start", "kind"), [(b"\x1f\x8b\x08", "gzip"), (b"PAR1", "Parquet"), (b"\x28\xb5\x2f\xfd", "zstd")]
)
def test_a_packed_file_is_named(tmp_path: Path, start: bytes, kind: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(start + b"rest\n")
    with pytest.raises(DataError, match=rf"a\.jsonl: is {kind}, not JSON lines"):
        list(JsonLines(path).blocks())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read: No such file or directory"):
        list(JsonLines(tmp_path / "no.jsonl").blocks())
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read: No such file or directory"):
        hash_file(tmp_path / "no.jsonl")


def test_texts_stop_at_the_first_bad_line_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(DataError, match=r'a\.jsonl:2: not a string: "text" is int, not a string; mend or remove'):
        list(texts(path, "text"))
