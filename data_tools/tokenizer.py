"""Byte-level BPE tokenizers in a folder: load, describe, train.

A tokenizer folder holds, in the form of Hugging Face `transformers`:

| file                  | holds |
|-----------------------|-------|
| tokenizer.json        | vocabulary, merges, splitting, added tokens; written last |
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from data_tools.errors import DataError

if TYPE_CHECKING:
    import tokenizers

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
    content = _read(Path(folder) / "tokenizer.json")
    return hashlib.sha256(content + _eod_token(Path(folder)).encode()).hexdigest()


def describe(folder: str | Path) -> TokenizerFacts:
    """The facts of a tokenizer, from its JSON alone; imports neither `tokenizers` nor torch.

    Raises:
        DataError: If the folder holds no tokenizer, or its end-of-document token has no id.
    """
    path = Path(folder) / "tokenizer.json"
    ids = _token_ids(path)
    eod_token = _eod_token(Path(folder))
    if eod_token not in ids:
        raise DataError(
            f"{Path(folder) / 'tokenizer_config.json'}: eos_token: {eod_token!r} has no id in {path}; "
            "name a token of the vocabulary"
        )
    return TokenizerFacts(
        fingerprint=fingerprint(folder),
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(_read(path))
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no JSON object")
    return content


def _eod_token(folder: Path) -> str:
    path = folder / "tokenizer_config.json"
    token = _read_json(path).get("eos_token")
    if isinstance(token, dict):  # transformers writes AddedToken objects too
        token = token.get("content")
    if not isinstance(token, str) or not token:
        raise DataError(f"{path}: eos_token: missing; name the token that ends a document")
    return token


def _token_ids(path: Path) -> dict[str, int]:
    """Every token that has an id, added tokens included."""
    content = _read_json(path)
    try:
        vocabulary = content["model"]["vocab"]
        added = content.get("added_tokens") or []
        if not isinstance(vocabulary, dict):
            raise TypeError
        return {**vocabulary, **{token["content"]: token["id"] for token in added}}
    except (KeyError, TypeError):
        raise DataError(f"{path}: model.vocab: not a map of tokens to ids; only BPE tokenizers are read") from None


class Tokenizer:
    """A tokenizer that never lets text forge a control token."""

    def __init__(self, backend: tokenizers.Tokenizer, facts: TokenizerFacts) -> None:
        self._backend = backend
        self.facts = facts

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Loads a tokenizer folder.

        Raises:
            DataError: If the folder holds no tokenizer that `tokenizers` can read.
        """
        import tokenizers

        facts = describe(folder)
        path = Path(folder) / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path}: not readable by tokenizers {tokenizers.__version__}: {error}") from None
        backend.encode_special_tokens = True  # named backwards: True encodes them as plain characters
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, facts)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; no end-of-document id is added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, encoded in parallel; equal to `encode` of each."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens spelled out."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

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
