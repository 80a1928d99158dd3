"""The libraries that turn text into ids, behind one call: gigatoken where it takes the tokenizer, else tokenizers.

| `--special-tokens` | a text that spells `<|endoftext|>` |
|--------------------|-------------------------------------|
| literal            | gives plain characters: text has no power over a reader |
| parse              | gives the id of the token, as Megatron's preprocess_data.py does |
| reject             | is no document; the record counts as rejected |

It concerns the added tokens that tokenizer.json calls special. Other added tokens, such as `<think>`, are
ids wherever they stand. tokenizers knows the first two ways; gigatoken always parses, so for `literal` it
is given a tokenizer.json without the special tokens.

Source: our own comparison over 208 MB and 20,000 adversarial strings for each of three vocabularies:
gigatoken 0.10 gives the ids of tokenizers 0.23 at about 90 times the speed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.errors import SetupError
from data_tools.hugging_face import HuggingFaceTokenizer, give_memory_back
from data_tools.hugging_face import SpecialTokens as SpecialTokens
from data_tools.threads import gigatoken_threads
from data_tools.tokenizer_json import parse_json

EngineName = Literal["auto", "gigatoken", "tokenizers"]

_CACHE_BYTES = 40 << 20
"""Growth of the process at which gigatoken is loaded anew: it keeps every word that it has seen, about 100 bytes each.

Source: our own measurement of gigatoken 0.10.0: 11 million words took 770 MiB. Loading takes 0.4 s and, for a moment,
as much memory as this; it comes every 200 MB of mixed prose, code and reasoning."""

_TRIM_BYTES = 8 << 20
"""Growth of the process at which freed memory is given back."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Encoded:
    """The ids of some texts, one after the other.

    Attributes:
        ids: [tokens] uint32, or the type on the disk.
        lengths: [texts] int64; sums to `tokens`.
    """

    ids: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """The ids of each text."""
        return iter(np.split(self.ids, np.cumsum(self.lengths)[:-1]) if len(self) else ())


class Engine(Protocol):
    """One library at work.

    Attributes:
        name: Of the library.
        version: Of the library.
    """

    name: str
    version: str

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text; no end-of-document id is added."""


class Reference(Engine, Protocol):
    """The library whose ids are right by definition."""

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens spelled out."""

    @property
    def control_ids(self) -> list[int]:
        """Ids that no text may forge."""


def joined(ids: Sequence[Sequence[int] | npt.NDArray[np.uint32]]) -> Encoded:
    """The ids of several texts as one array."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return Encoded(np.concatenate(ids).astype(np.uint32, copy=False) if ids else np.zeros(0, np.uint32), lengths)


class Gigatoken:
    """gigatoken, on as many threads as `limit_threads` says."""

    name = "gigatoken"

    def __init__(self, content: bytes, *, special_tokens: SpecialTokens) -> None:
        """Loads a tokenizer.

        Args:
            content: Of tokenizer.json.
            special_tokens: See the top of this file; `reject` parses.

        Raises:
            RuntimeError: From gigatoken, if it does not take this tokenizer.
        """
        import importlib.metadata

        self.version = importlib.metadata.version("gigatoken")
        self._content = _without_special_tokens(content) if special_tokens == "literal" else content
        self._threads = gigatoken_threads()
        self._start()

    def _start(self) -> None:
        import gigatoken

        self._backend: Any = None  # the old one goes before the new one comes
        give_memory_back()
        self._backend = gigatoken.Tokenizer.from_json(self._content)
        give_memory_back()
        self._resident_at_start = self._resident_at_trim = _resident_bytes()

    def _keep_within_bounds(self) -> None:
        """Gives garbage back, of which the allocator keeps 30 MiB, and starts anew where the words take too much."""
        if _resident_bytes() - self._resident_at_trim < _TRIM_BYTES:
            return
        give_memory_back()
        self._resident_at_trim = _resident_bytes()
        if self._resident_at_trim - self._resident_at_start > _CACHE_BYTES * self._threads:
            self._start()

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text.

        On one thread it is one call a text: the library's own batches give the same ids in the same time, but
        import awkward, a quarter of a second and 40 MiB. Two threads must not call `encode` at once.
        """
        self._keep_within_bounds()
        if self._threads == 1:
            return joined([self._backend.encode(text) for text in texts])
        layout: Any = self._backend.encode_batch(list(texts)).layout
        offsets = np.asarray(layout.offsets.data)
        return Encoded(np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets))


class HuggingFace(HuggingFaceTokenizer):
    """tokenizers in this process."""

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text."""
        parts = list(self.encode_parts(texts))
        lengths = np.fromiter(map(len, chain.from_iterable(parts)), np.int64, len(texts))
        ids = [np.fromiter(chain.from_iterable(part), np.uint32, sum(map(len, part))) for part in parts]
        return Encoded(np.concatenate(ids) if ids else np.zeros(0, np.uint32), lengths)


def _without_special_tokens(content: bytes) -> bytes:
    tokenizer = parse_json(content)
    tokenizer["added_tokens"] = [token for token in tokenizer.get("added_tokens") or [] if not token.get("special")]
    return orjson.dumps(tokenizer)


@dataclass(frozen=True)
class ChosenEngine:
    """The engine that encodes, and why it is not the faster one.

    Attributes:
        engine: The one that encodes.
        reason: What gigatoken said when it refused; empty when it was taken, or not asked for.
    """

    engine: Engine
    reason: str = ""


def choose_engine(
    name: EngineName, content: bytes, reference: Reference, *, special_tokens: SpecialTokens
) -> ChosenEngine:
    """The engine to encode a tokenizer.json with.

    Args:
        name: `auto`: gigatoken if it takes the tokenizer.
        content: Of tokenizer.json.
        reference: The same tokenizer in tokenizers.
        special_tokens: See the top of this file.

    Raises:
        SetupError: If gigatoken was asked for by name and does not take the tokenizer.
    """
    return _chosen(name, reference, lambda: Gigatoken(content, special_tokens=special_tokens))


def choose_model_engine(name: EngineName, content: bytes, reference: Reference) -> ChosenEngine:
    """The engine to encode a SentencePiece model with.

    Args:
        name: `gigatoken`: that; else the reference.
        content: Of the model.
        reference: The same model in sentencepiece.

    Raises:
        SetupError: If gigatoken was asked for and does not take the model.
    """

    def load() -> Gigatoken:
        from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

        return Gigatoken(sentencepiece_to_tokenizer_json(content).encode(), special_tokens="literal")

    return _chosen(name if name == "gigatoken" else "tokenizers", reference, load)


def _chosen(name: EngineName, reference: Reference, load: Callable[[], Gigatoken]) -> ChosenEngine:
    if name == "tokenizers":
        return ChosenEngine(reference)
    try:
        return ChosenEngine(load())
    except Exception as error:  # gigatoken raises RuntimeError, ValueError and, where absent, ImportError
        said = " ".join(str(error).split("Location:")[0].split())
        if name == "gigatoken":
            raise SetupError(
                f"--bpe gigatoken: it does not take this tokenizer: {said}; give --bpe tokenizers"
            ) from None
        return ChosenEngine(reference, reason=said)


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
