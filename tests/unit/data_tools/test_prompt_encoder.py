"""Where an answer begins and ends is what the chat template says, not what a tokenizer calls special."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.chat_template_files import SHIPPED_TEMPLATE, template_source
from data_tools.prompts import PromptEncoder, read_prompts
from data_tools.records import Conversation, Turn, as_document
from data_tools.tokenizer import Tokenizer

CHATML = SHIPPED_TEMPLATE.read_text()
THINKING = "'<|im_start|>assistant\\n<think>\\n'".join(CHATML.rsplit("'<|im_start|>assistant\\n'", 1))
NEXT_TURN_ENDS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
NOTHING_ENDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LAST_IS_OPEN = NOTHING_ENDS.replace("\n", "{% if not loop.last %}<|im_end|>{% endif %}")


@pytest.fixture
def special_tags(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    """The same tokenizer, its tags of thinking among the special tokens, as in Nemotron 3."""
    content = json.loads((tiny_tokenizer / "tokenizer.json").read_bytes())
    for token in content["added_tokens"]:
        token["special"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_bytes((tiny_tokenizer / "tokenizer_config.json").read_bytes())
    return tmp_path


def stops(folder: Path, template: str) -> set[str]:
    tokenizer = Tokenizer.load(folder, special_tokens="parse")
    return {tokenizer.decode([token]) for token in PromptEncoder(folder, template).stop_ids}


def test_an_answer_ends_with_its_turn_or_its_document_and_at_no_other_control_token(tiny_tokenizer: Path) -> None:
    assert stops(tiny_tokenizer, CHATML) == {"<|im_end|>", "<|endoftext|>"}


def test_tags_of_thinking_that_are_special_end_no_answer(special_tags: Path) -> None:
    assert stops(special_tags, CHATML) == {"<|im_end|>", "<|endoftext|>"}


@pytest.mark.parametrize(
    ("template", "ends"),
    [(NEXT_TURN_ENDS, {"<|im_start|>"}), (NOTHING_ENDS, set()), (LAST_IS_OPEN, {"<|im_end|>"})],
)
def test_what_stands_behind_an_answer_before_the_next_turn_ends_it(
    tiny_tokenizer: Path, template: str, ends: set[str]
) -> None:
    assert stops(tiny_tokenizer, template) == {"<|endoftext|>", *ends}


@pytest.mark.parametrize(("template", "opening"), [(CHATML, ""), (THINKING, "<think>\n")])
def test_a_prompt_knows_what_its_template_begins_of_the_answer(
    tiny_tokenizer: Path, tmp_path: Path, template: str, opening: str
) -> None:
    line = {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": "Think in <think> tags. What is 1 plus 1?"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "meta_data": {},
    }
    (tmp_path / "p.jsonl").write_text(json.dumps(line) + "\n")
    encoder = PromptEncoder(tiny_tokenizer, template)
    (row,) = read_prompts(tmp_path / "p.jsonl", encoder, domain="math", scorer="number").rows
    assert row.opening == opening


def test_the_plain_template_asks_as_pretraining_reads_a_conversation(tiny_tokenizer: Path) -> None:
    template, file = template_source(tiny_tokenizer, Path("plain"))
    question, answer = Turn("user", "1 + 1?"), Turn("assistant", "2")
    prompt = PromptEncoder(tiny_tokenizer, template).render([{"role": "user", "content": question.content}])
    assert file.name == "plain.jinja"
    assert prompt + answer.content == as_document(Conversation("a", (question, answer))).text
    assert stops(tiny_tokenizer, template) == {"<|endoftext|>"}


@pytest.mark.parametrize("said", ["2", "2\x81 \x8d\ufdd0"])
def test_an_earlier_answer_of_a_prompt_comes_out_as_it_was(tiny_tokenizer: Path, said: str) -> None:
    turns = [("user", "1 + 1?"), ("assistant", said), ("user", "And twice that?")]
    rendered = PromptEncoder(tiny_tokenizer, CHATML).render([{"role": role, "content": text} for role, text in turns])
    assert rendered == (
        "<|im_start|>user\n1 + 1?<|im_end|>\n"
        f"<|im_start|>assistant\n{said}<|im_end|>\n"
        "<|im_start|>user\nAnd twice that?<|im_end|>\n<|im_start|>assistant\n"
    )
