"""tokenizers, the library whose ids are right by definition; imports no numpy, so a process of its own stays small.

Both this library and gigatoken need three times the memory while they load that they need afterwards, and the
allocator would keep it: measured on 131,072 ids, 150 MiB of which 50 are used. So it is given back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

SpecialTokens = Literal["parse", "literal", "reject"]

_LARGEST_BATCH_CHARACTERS = 1 << 20
"""tokenizers makes an object of about 150 bytes for each token; a larger batch would only cost memory."""


class HuggingFaceTokenizer:
    """A tokenizer.json in tokenizers.

    Attributes:
        name: Of the library.
        version: Of the library.
        backend: The library's own object.
    """

    name = "tokenizers"

    def __init__(self, content: bytes, *, special_tokens: SpecialTokens) -> None:
        """Loads a tokenizer.

        Args:
            content: Of tokenizer.json.
            special_tokens: See `data_tools.bpe`; `reject` parses.

        Raises:
            Exception: From tokenizers, if it cannot read the file.
        """
        import tokenizers

        self.version: str = tokenizers.__version__
        self.backend = tokenizers.Tokenizer.from_buffer(content)
        self.backend.encode_special_tokens = special_tokens == "literal"  # named backwards: as plain characters
        self.backend.no_truncation()
        self.backend.no_padding()
        give_memory_back()

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_parts(self, texts: Sequence[str]) -> Iterator[list[list[int]]]:
        """The ids of each text, some texts at a time."""
        for part in _batches(texts):
            yield [encoding.ids for encoding in self.backend.encode_batch_fast(part, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens spelled out."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=False)
        return text

    @property
    def token_ids(self) -> dict[str, int]:
        """Every token that has an id."""
        ids: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return ids

    @property
    def control_ids(self) -> list[int]:
        """Ids of the added tokens that tokenizer.json calls special."""
        added = self.backend.get_added_tokens_decoder()
        return sorted(number for number, token in added.items() if token.special)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in lists of at least `_LARGEST_BATCH_CHARACTERS`, save the last."""
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


def give_memory_back() -> None:
    """Hands freed memory to the system, where the C library can (glibc)."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
