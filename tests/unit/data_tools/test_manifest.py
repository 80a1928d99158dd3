"""A dataset is what its manifest says, or it is refused."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import orjson
import pytest

from data_tools.errors import DataError
from data_tools.index_header import IndexHeader
from data_tools.manifest import (
    Manifest,
    SourceFile,
    TokenizerRecord,
    check_files,
    manifest_path,
    read_manifest,
    write_manifest,
)

VALID_HEADER = IndexHeader(dtype="uint16", sequences=3, documents=3).to_bytes()


def make_manifest(**changes: object) -> Manifest:
    """Three documents of 5, 1 and 7 tokens in uint16."""
    fields: dict[str, object] = {
        "documents": 3,
        "tokens": 13,
        "rejected": 0,
        "rejected_by_reason": {},
        "bin_bytes": 26,
        "idx_bytes": 102,
        "bin_sha256": "b" * 64,
        "idx_sha256": "1" * 64,
        "dtype": "uint16",
        "max_token_id": 7,
        "tokens_per_block": [13],
        "append_eod": True,
        "eod_id": 0,
        "tokenizer": TokenizerRecord(fingerprint="f" * 64, vocab_size=8, name="tiny"),
        "sources": [SourceFile(path="a.jsonl", bytes=1, sha256="a" * 64)],
        "command": "data-tools tokenize",
        "versions": {"python": "3.12"},
        "created": "2026-01-01T00:00:00Z",
    }
    return Manifest.of(fields | changes)


def write_pair(prefix: Path) -> None:
    Path(f"{prefix}.bin").write_bytes(bytes(26))
    Path(f"{prefix}.idx").write_bytes(VALID_HEADER + bytes(68))


def test_a_manifest_is_read_back_as_written(tmp_path: Path) -> None:
    manifest = make_manifest()
    write_manifest(tmp_path / "base.validation", manifest)
    assert manifest_path(tmp_path / "base.validation").name == "base.validation.manifest.json"
    assert read_manifest(tmp_path / "base.validation") == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["base.validation.manifest.json"]


def test_a_manifest_of_before_domains_were_counted_is_read(tmp_path: Path) -> None:
    fields = asdict(make_manifest())
    assert fields.pop("tokens_by_domain") is None
    manifest_path(tmp_path / "base").write_bytes(orjson.dumps(fields))
    assert read_manifest(tmp_path / "base").tokens_by_domain is None


def test_the_data_id_is_of_the_content_and_not_of_path_or_time() -> None:
    manifest = make_manifest()
    elsewhere = make_manifest(created="2027", command="x", sources=[], versions={})
    assert elsewhere.data_id == manifest.data_id
    assert manifest.data_id == "34548165729db932cf59c134b6dd35b9125cb50888be64ac65ba51b57f184f12"
    others = [
        make_manifest(bin_sha256="c" * 64),
        make_manifest(idx_sha256="2" * 64),
        make_manifest(tokenizer=TokenizerRecord(fingerprint="e" * 64, vocab_size=8, name="tiny")),
    ]
    assert len({manifest.data_id, *(other.data_id for other in others)}) == 4


def test_an_absent_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; make it with: python -m data_tools tokenize"):
        read_manifest(tmp_path / "base")


def test_a_pair_without_a_manifest_is_not_taken_for_finished(tmp_path: Path) -> None:
    write_pair(tmp_path / "base")
    with pytest.raises(DataError, match=r"base\.bin is not known to be finished"):
        read_manifest(tmp_path / "base")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"format_version": 1,', "not JSON"),
        (b"[]", "format_version: None is not 1"),
        (b'{"format_version": 2}', "format_version: 2 is not 1"),
        (b'{"format_version": 1}', "documents: Field required"),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    manifest_path(tmp_path / "base").write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_manifest(tmp_path / "base")
    assert str(caught.value).endswith("tokenize it again with --overwrite")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 14, "tokens_per_block": [14]}, "bin_bytes 26 is not tokens x 2 = 28"),
        ({"tokens_per_block": [6, 6]}, "tokens_per_block sums to 12, tokens is 13"),
        ({"tokens_by_domain": {"code": 5, "math": 7}}, "tokens_by_domain sums to 12, tokens is 13"),
        ({"tokens_by_domain": {"maths": 13}}, "tokens_by_domain: 'maths' is no 'code' or 'general' or 'math'"),
        ({"rejected": 2, "rejected_by_reason": {"empty": 1}}, "does not sum to rejected = 2"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    fields = asdict(make_manifest()) | changes
    manifest_path(tmp_path / "base").write_bytes(orjson.dumps(fields))
    with pytest.raises(DataError, match=said):
        read_manifest(tmp_path / "base")


def test_the_pair_that_the_manifest_describes_is_accepted(tmp_path: Path) -> None:
    write_pair(tmp_path / "base")
    manifest = make_manifest()
    check_files(tmp_path / "base", manifest)
    assert (tmp_path / "base.bin").stat().st_size == manifest.bin_bytes
    assert (tmp_path / "base.idx").stat().st_size == manifest.idx_bytes


def test_a_shortened_bin_is_refused_with_both_sizes(tmp_path: Path) -> None:
    write_pair(tmp_path / "base")
    Path(tmp_path / "base.bin").write_bytes(bytes(20))
    with pytest.raises(DataError, match=r"base\.bin: has 20 bytes, its manifest says 26"):
        check_files(tmp_path / "base", make_manifest())


def test_a_missing_idx_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "base")
    Path(tmp_path / "base.idx").unlink()
    with pytest.raises(DataError, match=r"base\.idx: No such file or directory, but its manifest says 102 bytes"):
        check_files(tmp_path / "base", make_manifest())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (IndexHeader(dtype="int32", sequences=3, documents=3).to_bytes(), "dtype: the index says int32"),
        (IndexHeader(dtype="uint16", sequences=3, documents=2).to_bytes(), "documents: the index says 2"),
        (IndexHeader(dtype="uint16", sequences=4, documents=3).to_bytes(), "idx_bytes: the index says 114"),
        (b"MMIDIDZ" + VALID_HEADER[7:], "not a Megatron index of version 1"),
        (VALID_HEADER[:9] + b"\x02" + VALID_HEADER[10:], "not a Megatron index of version 1"),
        (VALID_HEADER[:17] + b"\x07" + VALID_HEADER[18:], r"dtype code 7 is none of \[4, 8\]"),
    ],
)
def test_an_index_of_another_dataset_is_refused(tmp_path: Path, header: bytes, said: str) -> None:
    write_pair(tmp_path / "base")
    Path(tmp_path / "base.idx").write_bytes(header + bytes(68))
    with pytest.raises(DataError, match=said):
        check_files(tmp_path / "base", make_manifest())
