"""Tokenizer folders: trained, described, loaded."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError, UsageError
from data_tools.tokenizer import CONTROL_TOKENS, RESERVED_TOKENS, Tokenizer, describe, fingerprint, train
from data_tools.tokenizer_training import train_tokenizer

WriteLines = Callable[..., Path]

CORPUS = {"text": "one two three two one three " * 10}

loaded = functools.cache(Tokenizer.load)


def test_the_added_tokens_have_the_first_ids(tiny_tokenizer: Path) -> None:
    vocabulary = json.loads((tiny_tokenizer / "tokenizer.json").read_bytes())
    ids = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    assert {token: ids[token] for token in list(ids)[:6]} == {
        "<|endoftext|>": 0,
        "<|pad|>": 1,
        "<|im_start|>": 2,
        "<|im_end|>": 3,
        "<think>": 4,
        "</think>": 5,
    }
    assert len(ids) == 16


def test_a_tokenizer_is_described_from_its_json(tiny_tokenizer: Path) -> None:
    facts = describe(tiny_tokenizer)
    assert (facts.vocab_size, facts.eod_id, facts.eod_token) == (288, 0, "<|endoftext|>")
    content = (tiny_tokenizer / "tokenizer.json").read_bytes()
    assert facts.fingerprint == hashlib.sha256(content + b"<|endoftext|>").hexdigest() == fingerprint(tiny_tokenizer)


def test_describing_imports_no_tokenizer_library(tiny_tokenizer: Path) -> None:
    code = (
        "import sys; from data_tools.tokenizer import describe; describe(sys.argv[1]);"
        "print(sorted({'tokenizers', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_tokenizer], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_loaded_tokenizer_agrees_with_its_description(tiny_tokenizer: Path) -> None:
    tokenizer, facts = Tokenizer.load(tiny_tokenizer), describe(tiny_tokenizer)
    assert tokenizer.vocab_size == facts.vocab_size == 288
    assert (tokenizer.eod_id, tokenizer.eod_token, tokenizer.fingerprint) == (0, "<|endoftext|>", facts.fingerprint)


def test_frequent_words_become_one_token(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    ids = tokenizer.encode(" the cat")
    assert [tokenizer.decode([number]) for number in ids] == [" the", " cat"]


def test_each_digit_is_a_token_however_frequent_the_number(tmp_path: Path, write_lines: WriteLines) -> None:
    train([write_lines({"text": "2024\n" * 50})], "text", 300, tmp_path / "t")
    assert len(Tokenizer.load(tmp_path / "t").encode("2024")) == 4


def test_a_word_may_take_the_sign_before_it_into_its_token(tmp_path: Path, write_lines: WriteLines) -> None:
    train([write_lines({"text": "\n(cat" * 50})], "text", 300, tmp_path / "t")
    assert len(Tokenizer.load(tmp_path / "t").encode("(cat")) == 1


def test_decoding_spells_control_tokens_out(tiny_tokenizer: Path) -> None:
    assert Tokenizer.load(tiny_tokenizer).decode([0, 2]) == "<|endoftext|><|im_start|>"


def test_a_think_mark_in_text_is_its_one_id(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    assert tokenizer.encode("<think></think>") == [4, 5]
    assert tokenizer.decode([4, 5]) == "<think></think>"


@pytest.mark.parametrize("token", [*CONTROL_TOKENS, RESERVED_TOKENS[0]])
def test_a_control_token_in_text_is_plain_characters(tiny_tokenizer: Path, token: str) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    text = f"a{token}b {token}"
    ids = tokenizer.encode(text)
    assert min(ids) >= 16
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text]).ids.tolist() == ids


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<|endoftext|>", "<|", "|>", "<think>", " the", "é", "\x00", "\n"]) | st.text()))
def test_any_text_survives_and_forges_no_control_token(tiny_tokenizer: Path, pieces: list[str]) -> None:
    text = "".join(pieces).encode("utf-8", "ignore").decode()
    tokenizer = loaded(tiny_tokenizer)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(number in {4, 5} or number >= 16 for number in ids)


def test_training_twice_gives_the_same_bytes(tmp_path: Path, write_lines: WriteLines) -> None:
    corpus = write_lines(CORPUS)
    for name in ("a", "b"):
        train([corpus], "text", 290, tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


def test_training_reads_conversations_and_several_files(tmp_path: Path, write_lines: WriteLines) -> None:
    first = write_lines(CORPUS, name="a.jsonl")
    second = write_lines({"conversations": [{"from": "human", "value": "zebra " * 50}]}, name="b.jsonl")
    trained = train_tokenizer([first, second], key="text", vocab_size=300, out=tmp_path / "t")
    assert (trained.documents, trained.was_there) == (2, False)
    assert len(Tokenizer.load(tmp_path / "t").encode(" zebra")) == 1


def test_added_tokens_in_the_text_earn_no_merges(tmp_path: Path, write_lines: WriteLines) -> None:
    corpus = write_lines({"text": "<think><|endoftext|></think>" * 50 + "ab"})
    train([corpus], "text", 300, tmp_path / "t")
    assert describe(tmp_path / "t").vocab_size == 273  # 16 added tokens, 256 bytes, and the merge "ab"


def test_training_again_into_the_same_folder_changes_nothing(tmp_path: Path, write_lines: WriteLines) -> None:
    corpus = write_lines(CORPUS)
    facts = train([corpus], "text", 290, tmp_path / "t")
    before = (tmp_path / "t/tokenizer.json").stat().st_mtime_ns
    again = train_tokenizer([corpus], key="text", vocab_size=290, out=tmp_path / "t")
    assert (again.facts, again.was_there) == (facts, True)
    assert (tmp_path / "t/tokenizer.json").stat().st_mtime_ns == before


def test_a_folder_with_a_different_tokenizer_is_not_overwritten(tmp_path: Path, write_lines: WriteLines) -> None:
    corpus = write_lines(CORPUS)
    train([corpus], "text", 290, tmp_path / "t")
    before = (tmp_path / "t/tokenizer.json").read_bytes()
    with pytest.raises(DataError, match="t: holds a different tokenizer: vocab_size: it has 290, asked for 280"):
        train([corpus], "text", 280, tmp_path / "t")
    two = [corpus, write_lines({"text": "b"}, name="more.jsonl")]
    with pytest.raises(
        DataError,
        match=r"inputs_sha256: it has 1 \([0-9a-f]{12}\), asked for 2 \(.*\); vocab_size: it has 290, asked for 280",
    ):
        train(two, "text", 280, tmp_path / "t")
    (tmp_path / "t/training.json").unlink()
    with pytest.raises(DataError, match="t: holds a tokenizer that was not trained here"):
        train([corpus], "text", 290, tmp_path / "t")
    assert (tmp_path / "t/tokenizer.json").read_bytes() == before


def test_a_vocabulary_below_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--vocab-size: 271 is below 272"):
        train([], "text", 271, tmp_path / "t")


def test_a_folder_without_a_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read: .*python -m data_tools train-tokenizer"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{}", "eos_token: missing"),
        ('{"eos_token": "<eod>"}', "eos_token: '<eod>' has no id"),
        ("{", "not JSON"),
    ],
)
def test_a_tokenizer_without_an_end_of_document_is_refused(
    tmp_path: Path, tiny_tokenizer: Path, config: str, said: str
) -> None:
    shutil.copytree(tiny_tokenizer, tmp_path / "t")
    (tmp_path / "t/tokenizer_config.json").write_text(config)
    with pytest.raises(DataError, match=said):
        describe(tmp_path / "t")


def test_the_end_of_document_may_be_an_added_token_object(tmp_path: Path, tiny_tokenizer: Path) -> None:
    shutil.copytree(tiny_tokenizer, tmp_path / "t")
    (tmp_path / "t/tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    assert describe(tmp_path / "t").eod_id == 3
    assert fingerprint(tmp_path / "t") != fingerprint(tiny_tokenizer)


def test_a_tokenizer_written_anew_has_another_fingerprint(tmp_path: Path, tiny_tokenizer: Path) -> None:
    shutil.copytree(tiny_tokenizer, tmp_path / "t")
    before = fingerprint(tmp_path / "t")
    content = (tmp_path / "t/tokenizer.json").read_bytes()
    os.replace(_written(tmp_path / "new", content.replace(b"1.0", b"2.0", 1)), tmp_path / "t/tokenizer.json")
    assert fingerprint(tmp_path / "t") != before == fingerprint(tiny_tokenizer)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
