"""What an exported folder says of its tokens."""

from __future__ import annotations

import json
from pathlib import Path

from data_tools.tokenizer import describe, special_tokens, train
from megatron_ext.convert.tokenizer_files import generation_config, pad_on_the_left, token_ids


def make_tokenizer(folder: Path) -> Path:
    """One of bytes and control tokens alone."""
    (folder / "raw.jsonl").write_text(json.dumps({"text": "one two"}) + "\n")
    train([folder / "raw.jsonl"], "text", 280, folder / "tokenizer")
    return folder / "tokenizer"


def test_a_turn_that_ends_where_the_next_one_begins_ends_generation(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    (tokenizer / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<|reserved_0|>' if m.role == 'user' else '<|reserved_1|>' }}{{ m.content }}"
        "{% endfor %}{{ '<|reserved_1|>' if add_generation_prompt }}"
    )
    facts = describe(tokenizer)
    ends = generation_config(tokenizer, token_ids(tokenizer, facts))["eos_token_id"]
    assert ends == [facts.eod_id, special_tokens(tokenizer)["<|reserved_0|>"]]


def test_nothing_but_the_side_of_padding_changes_in_a_tokenizers_configuration(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    before, facts = json.loads((tokenizer / "tokenizer_config.json").read_text()), describe(tokenizer)
    pad_on_the_left(tokenizer)
    pad_on_the_left(tokenizer)
    assert json.loads((tokenizer / "tokenizer_config.json").read_text()) == before | {"padding_side": "left"}
    assert describe(tokenizer) == facts
