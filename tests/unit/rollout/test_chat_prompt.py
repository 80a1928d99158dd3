"""A question in the ids that the chat template makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer
from data_tools.tokenizer_training import train_tokenizer
from megatron_ext.rollout.chat_prompt import chat_prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizer")
    raw = root / "raw.jsonl"
    raw.write_text(json.dumps({"id": "a", "text": "the cat sat on the mat " * 20}) + "\n")
    train_tokenizer([raw], key="text", vocab_size=300, out=root / "tok")
    return root / "tok"


def test_a_question_is_the_users_turn_and_the_begin_of_the_assistants(folder: Path) -> None:
    prompt = chat_prompt(folder, "the cat?")
    text = Tokenizer.load(folder, special_tokens="parse").decode(prompt.ids)
    assert text == "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_ends_with_a_control_token(folder: Path) -> None:
    prompt = chat_prompt(folder, "the cat?")
    tokenizer = Tokenizer.load(folder, special_tokens="parse")
    (end,) = tokenizer.encode("<|im_end|>")
    assert end in prompt.stop_ids
    assert not set(tokenizer.encode("the cat sat")) & prompt.stop_ids


def test_a_folder_without_a_template_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(DataError, match="holds no chat template"):
        chat_prompt(tmp_path, "the cat?")
