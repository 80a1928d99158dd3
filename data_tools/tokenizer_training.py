"""Trains a byte-level BPE tokenizer, the same bytes for the same files on one version of `tokenizers`.

Splitting is Qwen2's pattern: words with their leading space, single digits, punctuation runs. Single
digits keep numbers comparable token by token, which arithmetic needs. Nothing is normalised, so
decoding gives back the very text.

Source: Qwen2's tokenizer.json (split pattern); Singh and Strouse, "Tokenization counts", arXiv
2402.14903 (digits).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_tools.adapters import adapter_named
from data_tools.atomic_files import only_writer, write_atomically
from data_tools.chat_template_files import SHIPPED_TEMPLATE
from data_tools.documents import texts
from data_tools.errors import DataError, UsageError
from data_tools.inputs import find_inputs
from data_tools.manifest import READER_VERSION
from data_tools.readers import hash_file
from data_tools.tokenizer import (
    CONTROL_TOKENS,
    EOD_TOKEN,
    MARKUP_TOKENS,
    PAD_TOKEN,
    RESERVED_TOKENS,
    TokenizerFacts,
    describe,
)

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ADDED_TOKENS = (*CONTROL_TOKENS, *MARKUP_TOKENS, *RESERVED_TOKENS)
SMALLEST_VOCABULARY = len(_ADDED_TOKENS) + 256
_ADDED_TEXT = re.compile("|".join(re.escape(token) for token in _ADDED_TOKENS))


@dataclass(frozen=True)
class TrainedTokenizer:
    """The outcome of a training.

    Attributes:
        facts: The tokenizer.
        documents: Documents that it was trained on; 0 when it was there already.
        was_there: Whether the folder already held it.
    """

    facts: TokenizerFacts
    documents: int
    was_there: bool


def train_tokenizer(files: Sequence[Path], *, key: str, vocab_size: int, out: Path) -> TrainedTokenizer:
    """Trains a tokenizer into a folder, unless the folder already holds it.

    Args:
        files: Files, folders, globs; the text is taken as `tokenize` takes it.
        key: Key of the text.
        vocab_size: Ids wanted, added tokens included. Fewer come out when the text has too few merges.
        out: The folder.

    Raises:
        UsageError: If `vocab_size` is too small to hold the bytes.
        DataError: If a file cannot be read, or `out` holds a different tokenizer.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(
            f"--vocab-size: {vocab_size} is below {SMALLEST_VOCABULARY}, which the 256 bytes and "
            f"{len(_ADDED_TOKENS)} added tokens take"
        )
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out / "tokenizer.json"):
        training = _training_record(files, key, vocab_size)
        if (out / "tokenizer.json").exists():
            _refuse_another(out, training)
            if not (out / "chat_template.jinja").exists():  # trained before templates were put there
                write_atomically(out / "chat_template.jinja", SHIPPED_TEMPLATE.read_bytes())
            return TrainedTokenizer(facts=describe(out), documents=0, was_there=True)
        counter = _Counter()
        tokenizer_json = _train(counter.count(_training_texts(files, key)), vocab_size)
        if not counter.documents:
            raise DataError(f"{', '.join(map(str, files))}: no text to train on")
        write_atomically(out / "chat_template.jinja", SHIPPED_TEMPLATE.read_bytes())
        _write_json(out / "tokenizer_config.json", _config())
        _write_json(out / "training.json", training)
        write_atomically(out / "tokenizer.json", tokenizer_json)
        return TrainedTokenizer(facts=describe(out), documents=counter.documents, was_there=False)


@dataclass
class _Counter:
    documents: int = 0

    def count(self, items: Iterator[str]) -> Iterator[str]:
        for item in items:
            self.documents += 1
            yield item


def _training_record(files: Sequence[Path], key: str, vocab_size: int) -> dict[str, Any]:
    import tokenizers

    return {
        "inputs_sha256": [hash_file(file.path).sha256 for file in find_inputs(files).files],
        "key": key,
        "vocab_size": vocab_size,
        "added_tokens": list(_ADDED_TOKENS),
        "split": _SPLIT,
        "reader_version": READER_VERSION,
        "tokenizers_version": tokenizers.__version__,
    }


def _refuse_another(out: Path, training: dict[str, Any]) -> None:
    path = out / "training.json"
    remedy = "choose another --out, or remove the folder"
    if not path.exists():
        raise DataError(f"{out}: holds a tokenizer that was not trained here; {remedy}")
    try:
        there = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        raise DataError(f"{path}: not JSON; {remedy}") from None
    differences = [
        f"{name}: it has {_said(there.get(name))}, asked for {_said(wanted)}"
        for name, wanted in training.items()
        if there.get(name) != wanted
    ]
    if differences:
        raise DataError(f"{out}: holds a different tokenizer: {'; '.join(differences)}; {remedy}")


def _said(value: object) -> str:
    """Long lists, of hashes above all, by their number and beginnings."""
    if not isinstance(value, list):
        return repr(value)
    return f"{len(value)} ({', '.join(str(part)[:12] for part in value)})"


def _training_texts(files: Sequence[Path], key: str) -> Iterator[str]:
    """Texts without added tokens: those have ids already and must not earn merges."""
    for text in texts(files, adapter_named("text", key=key)):
        yield from filter(None, _ADDED_TEXT.split(text))


def _train(corpus: Iterator[str], vocab_size: int) -> bytes:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False) for token in _ADDED_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer=trainer)
    content = orjson.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] not in MARKUP_TOKENS
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOD_TOKEN,
        "pad_token": PAD_TOKEN,
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
