"""A tokenizer's files as a Hugging Face checkpoint has them, and what `config.json` says of its tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from data_tools.chat_encode import added_tokens
from data_tools.chat_template import ChatTemplate
from data_tools.chat_template_files import special_tokens as named_tokens
from data_tools.chat_template_files import template_source
from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer, TokenizerFacts, special_tokens
from megatron_ext.convert.hf_config import TokenIds

TEMPLATE = "chat_template.jinja"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer's files, and its chat template as the file in which tokenizers of today have it.

    Args:
        source: A folder with tokenizer.json.
        target: An existing folder.

    Raises:
        DataError: It has no tokenizer.json.
    """
    if not (source / "tokenizer.json").is_file():
        raise DataError(
            f"{source}: holds no tokenizer.json; save the tokenizer with AutoTokenizer.from_pretrained(…)"
            ".save_pretrained(DIR), which writes one."
        )
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (template := chat_template(source)) is not None:
        (target / TEMPLATE).write_text(template, encoding="utf-8")


def pad_on_the_left(folder: Path) -> None:
    """Has `tokenizer_config.json` say `padding_side: left`.

    A decoder goes on behind the last position of its row: behind padding on the right, which is transformers' default,
    the shorter prompts of a batch get answers of no meaning.
    """
    file = folder / "tokenizer_config.json"
    if file.is_file():
        config = json.loads(file.read_bytes()) | {"padding_side": "left"}
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def chat_template(folder: Path) -> str | None:
    """The chat template of a tokenizer's folder; None where it has none."""
    try:
        return template_source(folder, None)[0]
    except DataError:
        return None


def token_ids(folder: Path, facts: TokenizerFacts) -> TokenIds:
    """Begin of text, end of document and padding, as `tokenizer_config.json` names them."""
    names, ids = named_tokens(folder), special_tokens(folder)
    bos, pad = (ids.get(names.get(key, "")) for key in ("bos_token", "pad_token"))
    return TokenIds(bos, facts.eod_id, pad)


def generation_config(folder: Path, ids: TokenIds) -> dict[str, Any]:
    """`generation_config.json`: a text ends with its document, an answer in a chat with its turn too."""
    ends = [ids.eos]
    turn = _end_of_turn(folder)
    if turn is not None and turn != ids.eos:
        ends.append(turn)
    return {
        "bos_token_id": ids.bos,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": ids.pad,
        "do_sample": False,
    }


def _end_of_turn(folder: Path) -> int | None:
    """The control token behind an answer; None without a template, or where it writes none."""
    source = chat_template(folder)
    if source is None:
        return None
    tokens = added_tokens(Tokenizer.load(folder, special_tokens="parse"))
    template = ChatTemplate(source, control_tokens=tokens.control, variables=named_tokens(folder))
    end = template.end_of_turn()
    return tokens.ids[end] if end is not None else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes one of the small files, keys sorted, so that the same model gives the same bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
