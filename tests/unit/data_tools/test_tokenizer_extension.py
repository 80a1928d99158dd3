"""A tokenizer with more tokens is told from one with other tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from data_tools.errors import DataError
from data_tools.tokenizer_extension import tokens_added, unused_ids

VOCABULARY = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
FIELDS: dict[str, Any] = {
    "added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": True}],
    "normalizer": None,
    "model": {"type": "BPE", "vocab": VOCABULARY, "merges": ["a b"]},
}


def write(folder: Path, fields: dict[str, Any], eos: str = "<|endoftext|>") -> Path:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return folder


def with_tokens(*tokens: tuple[str, int]) -> dict[str, Any]:
    added = [{"id": number, "content": token, "special": True} for token, number in tokens]
    return FIELDS | {"added_tokens": FIELDS["added_tokens"] + added}


def with_model(**changes: Any) -> dict[str, Any]:
    return with_tokens(("<|tool|>", 4)) | {"model": FIELDS["model"] | changes}


def test_tokens_that_were_added_are_named_with_their_ids(tmp_path: Path) -> None:
    before = write(tmp_path / "before", FIELDS)
    after = write(tmp_path / "after", with_tokens(("<|tool|>", 5), ("<|call|>", 4)))
    assert list(tokens_added(after, to=before).items()) == [("<|call|>", 4), ("<|tool|>", 5)]
    assert tokens_added(before, to=before) == {}


def test_ids_that_no_token_has_are_listed(tmp_path: Path) -> None:
    assert unused_ids(write(tmp_path / "whole", FIELDS)) == ()
    assert unused_ids(write(tmp_path / "holes", with_tokens(("<|tool|>", 7), ("<|call|>", 5)))) == (4, 6)


def test_what_the_tokenizers_library_adds_is_an_extension(tiny_tokenizer: Path, tmp_path: Path) -> None:
    after = tmp_path / "after"
    shutil.copytree(tiny_tokenizer, after)
    library = Tokenizer.from_file(str(after / "tokenizer.json"))
    size = library.get_vocab_size()
    library.add_special_tokens(["<|tool|>", "<|call|>"])
    library.save(str(after / "tokenizer.json"))
    assert tokens_added(after, to=tiny_tokenizer) == {"<|tool|>": size, "<|call|>": size + 1}


Change = Callable[[], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda: with_model(vocab=VOCABULARY | {"a": 2, "b": 1}),
            "ids moved: 'a' is id 2 here, 1 there; 'b' is id 1 here, 2 there",
        ),
        (lambda: with_model(vocab={"<|endoftext|>": 0, "a": 1, "b": 2}), "ids moved: 'ab' is id none here, 3 there"),
        (lambda: with_model(merges=[]), "model of tokenizer.json differ, so text is split in another way"),
        (lambda: with_tokens(("<|tool|>", 4)) | {"normalizer": {"type": "NFC"}}, "normalizer of tokenizer.json differ"),
        (
            lambda: with_tokens() | {"added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": False}]},
            "added_tokens: '<|endoftext|>' is taken from text in another way",
        ),
        (lambda: with_tokens(("<|tool|>", 3)), "'<|tool|>' has id 3, which is another token's"),
    ],
)
def test_other_tokenizers_are_refused_with_what_differs(tmp_path: Path, change: Change, said: str) -> None:
    before, after = write(tmp_path / "before", FIELDS), write(tmp_path / "after", change())
    with pytest.raises(DataError) as caught:
        tokens_added(after, to=before)
    assert said in str(caught.value)


def test_another_end_of_documents_is_no_extension(tmp_path: Path) -> None:
    before = write(tmp_path / "before", FIELDS)
    after = write(tmp_path / "after", with_tokens(("<|tool|>", 4)), eos="<|tool|>")
    with pytest.raises(DataError, match=r"documents end with '<\|tool\|>' here, '<\|endoftext\|>' there"):
        tokens_added(after, to=before)
