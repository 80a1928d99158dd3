"""A tokenizer.json read as JSON: its facts, without the library that encodes with it."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_tools.errors import DataError


@dataclass(frozen=True)
class TokenizerFacts:
    """What a plan needs to know about a tokenizer.

    Attributes:
        fingerprint: See `data_tools.tokenizer.fingerprint`.
        vocab_size: Largest id + 1.
        eod_id: Id of the end-of-document token.
        eod_token: The end-of-document token.
    """

    fingerprint: str
    vocab_size: int
    eod_id: int
    eod_token: str


def fingerprint_of(content: bytes, eod_token: str) -> str:
    """Identity of a tokenizer: sha256 hex over the bytes of its file, then the end-of-document token."""
    digest = hashlib.sha256(content)
    digest.update(eod_token.encode())
    return digest.hexdigest()


def fingerprint_of_file(path: Path) -> str:
    """The same of a tokenizer.json that is not held in memory.

    Raises:
        DataError: If it cannot be read, or names no end-of-document token.
    """
    try:
        found = path.stat()
        digest = _digest_of(path, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)).copy()
    except OSError as error:
        raise _unreadable(path, error) from None
    digest.update(eod_token_of(path).encode())
    return str(digest.hexdigest())


@lru_cache(maxsize=4)
def _digest_of(path: Path, state: tuple[int, int, int, int]) -> Any:
    """The sha256 of a file, read once as long as its state is this one: each shard of a job asks for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def facts_of(path: Path, content: bytes, ids: dict[str, int] | None = None) -> TokenizerFacts:
    """The facts of a tokenizer.json.

    Args:
        path: Of the file; the name of the end-of-document token stands in the tokenizer_config.json beside it.
        content: Of the file.
        ids: Every token that has an id, where a library has read them already; None: they are read here.

    Raises:
        DataError: If it is no tokenizer, or its end-of-document token has no id.
    """
    if ids is None:
        return _facts_of(path, content)
    token = eod_token_of(path)
    return made_facts(path, fingerprint_of(content, token), token, eod_id=ids.get(token), largest_id=max(ids.values()))


def made_facts(path: Path, fingerprint: str, token: str, *, eod_id: int | None, largest_id: int) -> TokenizerFacts:
    """The facts of a tokenizer.json that has been read already.

    Args:
        path: Of the file, for messages.
        fingerprint: Of it.
        token: The end-of-document token.
        eod_id: Its id; None if it has none.
        largest_id: Of all tokens.

    Raises:
        DataError: If it has none.
    """
    if eod_id is None:
        raise DataError(
            f"{path.parent / 'tokenizer_config.json'}: eos_token: {token!r} has no id in {path}; "
            "name a token of the vocabulary"
        )
    return TokenizerFacts(
        fingerprint=fingerprint,
        vocab_size=largest_id + 1,
        eod_id=eod_id,
        eod_token=token,
    )


@lru_cache(maxsize=1)  # a command asks more than once, and a vocabulary of 131,072 takes a sixth of a second to parse
def _facts_of(path: Path, content: bytes) -> TokenizerFacts:
    return facts_of(path, content, token_ids(path, content))


def special_tokens_of(path: Path, content: bytes) -> dict[str, int]:
    """Ids of the added tokens that are special."""
    added = object_of(path, content).get("added_tokens") or []
    return {token["content"]: token["id"] for token in added if token.get("special")}


def eod_token_of(json_file: Path) -> str:
    """The end-of-document token that the tokenizer_config.json beside a tokenizer.json names.

    Raises:
        DataError: If it names none.
    """
    path = json_file.parent / "tokenizer_config.json"
    token = object_of(path, read_tokenizer(path), json.loads).get("eos_token")  # small: orjson would only cost time
    if isinstance(token, dict):  # transformers writes AddedToken objects too
        token = token.get("content")
    if not isinstance(token, str) or not token:
        raise DataError(f"{path}: eos_token: missing; name the token that ends a document")
    return token


def read_tokenizer(path: Path) -> bytes:
    """The bytes of a file of a tokenizer.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be read: {error.strerror}; a tokenizer folder holds tokenizer.json and "
        "tokenizer_config.json, make one with: python -m data_tools train-tokenizer"
    )


def parse_json(content: bytes) -> Any:
    """What `orjson.loads` gives, without the garbage collector.

    A vocabulary of 131,072 is a million objects without a cycle; looking for one doubles the time.

    Raises:
        orjson.JSONDecodeError: If it is no JSON.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        import orjson

        return orjson.loads(content)
    finally:
        if was_on:
            gc.enable()


def object_of(path: Path, content: bytes, parse: Callable[[bytes], Any] = parse_json) -> dict[str, Any]:
    """The JSON object that a file of a tokenizer holds.

    Raises:
        DataError: If it holds none.
    """
    try:
        fields = parse(content)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise DataError(f"{path}: holds no JSON object")
    return fields


def token_ids(path: Path, content: bytes) -> dict[str, int]:
    """Every token that has an id, added tokens included."""
    fields = object_of(path, content)
    try:
        vocabulary = fields["model"]["vocab"]
        added = fields.get("added_tokens") or []
        if not isinstance(vocabulary, dict):
            raise TypeError
        return {**vocabulary, **{token["content"]: token["id"] for token in added}}
    except (KeyError, TypeError):
        raise DataError(f"{path}: model.vocab: not a map of tokens to ids; only BPE tokenizers are read") from None
