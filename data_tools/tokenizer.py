"""Byte-level BPE tokenizers in a folder: load, describe, train.

A tokenizer folder holds, in the form of Hugging Face `transformers`:

| file                  | holds |
|-----------------------|-------|
| tokenizer.json        | vocabulary, merges, splitting, added tokens; written last |
| chat_template.jinja   | how a conversation becomes text; absent for many foreign tokenizers |
| tokenizer_config.json | names of the end-of-document (`eos_token`) and padding tokens |
| training.json         | what it was trained on, so that a re-run knows itself; absent for foreign tokenizers |

Ids of a tokenizer trained here, in order: `CONTROL_TOKENS`, `MARKUP_TOKENS`, `RESERVED_TOKENS`,
the 256 bytes, the merges. Control tokens have power over a reader (end of document, whose turn it
is), so text that spells one is encoded as plain characters. `<think>` and `</think>` only mark
text; they are single ids wherever they stand, so that traces read in pretraining train the very
ids that chats use later (Qwen3's tokenizer makes the same choice).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from data_tools.errors import DataError

if TYPE_CHECKING:
    from data_tools.bpe import ChosenEngine, Encoded, EngineName, HuggingFace, SpecialTokens

EOD_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
CONTROL_TOKENS = (EOD_TOKEN, PAD_TOKEN, "<|im_start|>", "<|im_end|>")
MARKUP_TOKENS = ("<think>", "</think>")
RESERVED_TOKENS = tuple(f"<|reserved_{number}|>" for number in range(10))


@dataclass(frozen=True)
class TokenizerFacts:
    """What a plan needs to know about a tokenizer.

    Attributes:
        fingerprint: See `fingerprint`.
        vocab_size: Largest id + 1.
        eod_id: Id of the end-of-document token.
        eod_token: The end-of-document token.
    """

    fingerprint: str
    vocab_size: int
    eod_id: int
    eod_token: str


def fingerprint(folder: str | Path) -> str:
    """Identity of a tokenizer: sha256 hex over the bytes of tokenizer.json, then the end-of-document token.

    Raises:
        DataError: If the folder holds no tokenizer.
    """
    path = json_path(folder)
    return _fingerprint(_read(path), _eod_token(path))


def describe(folder: str | Path) -> TokenizerFacts:
    """The facts of a tokenizer, from its JSON alone; imports neither `tokenizers` nor torch.

    Args:
        folder: The folder, or the tokenizer.json in it.

    Raises:
        DataError: If the folder holds no tokenizer, or its end-of-document token has no id.
    """
    path = json_path(folder)
    return _describe(path, _read(path))


def json_path(folder: str | Path) -> Path:
    """The tokenizer.json of a tokenizer folder, or that file itself."""
    path = Path(folder)
    return path if path.is_file() else path / "tokenizer.json"


def tokenizer_name(folder: str | Path) -> str:
    """What people call a tokenizer: the name of its folder."""
    return json_path(folder).resolve().parent.name


def _fingerprint(content: bytes, eod_token: str) -> str:
    return hashlib.sha256(content + eod_token.encode()).hexdigest()


@lru_cache(maxsize=1)  # a job asks twice, and a vocabulary of 131,072 takes a fifth of a second to parse
def _describe(path: Path, content: bytes) -> TokenizerFacts:
    ids = _token_ids(path, content)
    eod_token = _eod_token(path)
    if eod_token not in ids:
        raise DataError(
            f"{path.parent / 'tokenizer_config.json'}: eos_token: {eod_token!r} has no id in {path}; "
            "name a token of the vocabulary"
        )
    return TokenizerFacts(
        fingerprint=_fingerprint(content, eod_token),
        vocab_size=max(ids.values()) + 1,
        eod_id=ids[eod_token],
        eod_token=eod_token,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}; a tokenizer folder holds tokenizer.json and "
            "tokenizer_config.json, make one with: python -m data_tools train-tokenizer"
        ) from None


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise DataError(f"{path}: holds no JSON object")
    return fields


def _eod_token(json_file: Path) -> str:
    path = json_file.parent / "tokenizer_config.json"
    token = _parse(path, _read(path)).get("eos_token")
    if isinstance(token, dict):  # transformers writes AddedToken objects too
        token = token.get("content")
    if not isinstance(token, str) or not token:
        raise DataError(f"{path}: eos_token: missing; name the token that ends a document")
    return token


def _token_ids(path: Path, content: bytes) -> dict[str, int]:
    """Every token that has an id, added tokens included."""
    fields = _parse(path, content)
    try:
        vocabulary = fields["model"]["vocab"]
        added = fields.get("added_tokens") or []
        if not isinstance(vocabulary, dict):
            raise TypeError
        return {**vocabulary, **{token["content"]: token["id"] for token in added}}
    except (KeyError, TypeError):
        raise DataError(f"{path}: model.vocab: not a map of tokens to ids; only BPE tokenizers are read") from None


class Tokenizer:
    """A tokenizer that never lets text forge a control token, unless it is told to.

    Attributes:
        facts: What a plan needs to know about it.
        reference: The same tokenizer in the library `tokenizers`, by which the fast one is judged.
    """

    def __init__(self, facts: TokenizerFacts, reference: HuggingFace, choose: Callable[[], ChosenEngine]) -> None:
        self.facts = facts
        self.reference = reference
        self._choose = choose

    @classmethod
    def load(
        cls, folder: str | Path, *, special_tokens: SpecialTokens = "literal", engine: EngineName = "auto"
    ) -> Tokenizer:
        """Loads a tokenizer.

        Args:
            folder: The folder, or the tokenizer.json in it.
            special_tokens: What text that spells a control token gives; see `data_tools.bpe`.
            engine: Library that encodes batches.

        Raises:
            DataError: If the folder holds no tokenizer that `tokenizers` can read.
        """
        from data_tools.bpe import HuggingFace, choose_engine

        path = json_path(folder)
        content = _read(path)
        facts = _describe(path, content)
        try:
            reference = HuggingFace(content, special_tokens=special_tokens)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path}: not readable by tokenizers: {error}") from None
        return cls(facts, reference, lambda: choose_engine(engine, content, reference, special_tokens=special_tokens))

    @cached_property
    def chosen(self) -> ChosenEngine:
        """What encodes batches; loaded at its first use, which a dialogue never comes to.

        Raises:
            SetupError: If the engine was chosen by name and does not take the tokenizer.
        """
        return self._choose()

    @cached_property
    def control_ids(self) -> list[int]:
        """Ids of the added tokens that tokenizer.json calls special."""
        added = self.reference.backend.get_added_tokens_decoder()
        return sorted(number for number, token in added.items() if token.special)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; no end-of-document id is added."""
        ids: list[int] = self.reference.backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text, encoded in parallel; equal to `encode` of each."""
        return self.chosen.engine.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens spelled out."""
        text: str = self.reference.backend.decode(list(ids), skip_special_tokens=False)
        return text

    @property
    def eod_id(self) -> int:
        """Id of the end-of-document token."""
        return self.facts.eod_id

    @property
    def eod_token(self) -> str:
        """The end-of-document token."""
        return self.facts.eod_token

    @property
    def vocab_size(self) -> int:
        """Largest id + 1."""
        return self.facts.vocab_size

    @property
    def fingerprint(self) -> str:
        """Identity of the tokenizer; see the function of this name."""
        return self.facts.fingerprint


def train(files: Iterable[str | Path], key: str, vocab_size: int, out: str | Path) -> TokenizerFacts:
    """Trains a byte-level BPE tokenizer; see `data_tools.tokenizer_training.train_tokenizer`."""
    from data_tools.tokenizer_training import train_tokenizer

    return train_tokenizer([Path(file) for file in files], key=key, vocab_size=vocab_size, out=Path(out)).facts
