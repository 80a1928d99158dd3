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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.errors import SetupError

SpecialTokens = Literal["parse", "literal", "reject"]
EngineName = Literal["auto", "gigatoken", "tokenizers"]

_LARGEST_BATCH_CHARACTERS = 1 << 20
"""tokenizers makes an object of about 150 bytes for each token; a larger batch would only cost memory."""


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


class Gigatoken:
    """gigatoken, on as many threads as `limit_threads` allows."""

    name = "gigatoken"

    def __init__(self, content: bytes, *, special_tokens: SpecialTokens) -> None:
        """Loads a tokenizer.

        Args:
            content: Of tokenizer.json.
            special_tokens: See the top of this file; `reject` parses.

        Raises:
            RuntimeError: From gigatoken, if it does not take this tokenizer.
        """
        import gigatoken

        self.version = version("gigatoken")
        self._backend = gigatoken.Tokenizer.from_json(
            _without_special_tokens(content) if special_tokens == "literal" else content
        )

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text, without a copy of them."""
        layout: Any = self._backend.encode_batch(list(texts)).layout
        offsets = np.asarray(layout.offsets.data)
        return Encoded(np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets))


class HuggingFace:
    """tokenizers, the library whose ids are right by definition."""

    name = "tokenizers"

    def __init__(self, content: bytes, *, special_tokens: SpecialTokens) -> None:
        """Loads a tokenizer; the arguments are those of `Gigatoken`.

        Raises:
            Exception: From tokenizers, if it cannot read the file.
        """
        import tokenizers

        self.version = tokenizers.__version__
        self.backend = tokenizers.Tokenizer.from_buffer(content)
        self.backend.encode_special_tokens = special_tokens == "literal"  # named backwards: as plain characters
        self.backend.no_truncation()
        self.backend.no_padding()

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text."""
        parts = [self._encode(part) for part in _batches(texts)]
        lengths = np.fromiter(map(len, chain.from_iterable(parts)), np.int64, len(texts))
        ids = [np.fromiter(chain.from_iterable(part), np.uint32, sum(map(len, part))) for part in parts]
        return Encoded(np.concatenate(ids) if ids else np.zeros(0, np.uint32), lengths)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _LARGEST_BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _without_special_tokens(content: bytes) -> bytes:
    tokenizer = orjson.loads(content)
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
    name: EngineName, content: bytes, reference: HuggingFace, *, special_tokens: SpecialTokens
) -> ChosenEngine:
    """The engine to encode with.

    Args:
        name: `auto`: gigatoken if it takes the tokenizer.
        content: Of tokenizer.json.
        reference: The same tokenizer in tokenizers.
        special_tokens: See the top of this file.

    Raises:
        SetupError: If gigatoken was asked for by name and does not take the tokenizer.
    """
    if name == "tokenizers":
        return ChosenEngine(reference)
    try:
        return ChosenEngine(Gigatoken(content, special_tokens=special_tokens))
    except Exception as error:  # gigatoken raises RuntimeError, ValueError and, where absent, ImportError
        said = " ".join(str(error).split("Location:")[0].split())
        if name == "gigatoken":
            raise SetupError(
                f"--bpe gigatoken: it does not take this tokenizer: {said}; give --bpe tokenizers"
            ) from None
        return ChosenEngine(reference, reason=said)


def limit_threads(workers: int) -> None:
    """Sets how many threads the engines use; must be called before the first batch is encoded.

    Args:
        workers: At least 1.
    """
    os.environ["RAYON_NUM_THREADS"] = str(workers)  # read once, when either library starts its threads
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"
