"""Where a chat template is found, and the tokens that it may ask for by name: files of a tokenizer's folder."""

from __future__ import annotations

import json
from pathlib import Path

from data_tools.errors import DataError

SHIPPED_TEMPLATE = Path(__file__).parent / "chat_templates" / "chatml.jinja"
"""For tokenizers of `train-tokenizer`, which puts it into their folder."""


def shipped_template(name: str) -> Path | None:
    """The template that comes with this package under a name; None where there is none.

    >>> shipped_template("plain").name, shipped_template("mine.jinja")
    ('plain.jinja', None)
    """
    path = SHIPPED_TEMPLATE.parent / f"{name}.jinja"
    return path if name.isidentifier() and path.is_file() else None


_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def template_source(tokenizer: Path, file: Path | None) -> tuple[str, Path]:
    """The chat template of a tokenizer, and the file it stands in.

    Args:
        tokenizer: Tokenizer folder: its chat_template.jinja, else `chat_template` of tokenizer_config.json.
        file: A template that takes its place, or the name of one that comes with this package.

    Raises:
        DataError: If there is none.
    """
    file = (shipped_template(str(file)) or file) if file else None
    path = file or tokenizer / "chat_template.jinja"
    if file or path.exists():
        try:
            return path.read_text(encoding="utf-8"), path
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read: {error.strerror}; name a Jinja file with --chat-template"
            ) from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is no UTF-8: {error}; name a Jinja file with --chat-template") from None
    path = tokenizer / "tokenizer_config.json"
    source = json.loads(path.read_bytes()).get("chat_template") if path.exists() else None
    if isinstance(source, list):  # [{name, template}]: several
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if not isinstance(source, str):
        raise DataError(
            f"{tokenizer}: holds no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
            f"give --chat-template FILE, for tokenizers of train-tokenizer {SHIPPED_TEMPLATE}"
        )
    return source, path


def special_tokens(tokenizer: Path) -> dict[str, str]:
    """Named tokens of a tokenizer folder, such as `bos_token`, for templates."""
    config = json.loads((tokenizer / "tokenizer_config.json").read_bytes())
    named = {
        key: value["content"] if isinstance(value, dict) else value for key, value in config.items() if key in _NAMED
    }
    return {key: value for key, value in named.items() if isinstance(value, str)}
