"""SentencePiece `.model` files, BPE and unigram, encoded by the library `sentencepiece`.

The end-of-document token is the model's own `eos` piece. No beginning-of-sentence id is written: the ids
are those of `encode(text)`, which is what Megatron-LM's SentencePieceTokenizer writes.

A control piece (`<s>`, `</s>`) has no spelling: whatever a text holds, the library gives plain pieces for it, so
`--special-tokens` has nothing to choose. A user-defined piece is one id wherever it stands.

`sentencepiece` is right by definition, as it is the one that trained the model, so nothing is compared with it.
gigatoken takes BPE models with byte fallback, but only where it is asked for by name, and compared as always:
next to user-defined pieces and white space it gives other ids (measured: gigatoken 0.10.0, sentencepiece 0.2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.errors import DataError, SetupError
from data_tools.threads import library_threads
from data_tools.tokenizer_json import TokenizerFacts, fingerprint_of

if TYPE_CHECKING:
    from data_tools.bpe import Encoded


def model_of(path: Path, content: bytes) -> Any:
    """The model in the library.

    Raises:
        SetupError: If the library is not installed.
        DataError: If the file is no SentencePiece model.
    """
    try:
        import sentencepiece
    except ImportError:
        raise SetupError(
            "sentencepiece is not installed, and .model tokenizers are read with it: "
            "pip install 'megatron-ext[sentencepiece]'"
        ) from None
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise DataError(f"{path}: is no SentencePiece model (nor JSON); copy it again") from None


@lru_cache(maxsize=1)
def model_facts(path: Path, content: bytes) -> TokenizerFacts:
    """The facts of a model.

    Raises:
        SetupError: If the library is not installed.
        DataError: If the file is no model, or the model has no piece that ends a text.
    """
    model = model_of(path, content)
    eod_id = model.eos_id()
    if eod_id < 0:
        raise DataError(f"{path}: has no eos piece to end a document with; train it with --eos_id")
    eod_token = model.id_to_piece(eod_id)
    return TokenizerFacts(
        fingerprint=fingerprint_of(content, eod_token),
        vocab_size=model.get_piece_size(),
        eod_id=eod_id,
        eod_token=eod_token,
    )


class SentencePiece:
    """The library `sentencepiece`, whose ids are right by definition; it has the form of `bpe.Reference`."""

    name = "sentencepiece"

    def __init__(self, path: Path, content: bytes) -> None:
        """Loads a model; see `model_of`."""
        self._model = model_of(path, content)
        import sentencepiece

        self.version: str = sentencepiece.__version__

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ids: list[int] = self._model.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text."""
        from data_tools.bpe import joined

        return joined(self._model.encode(list(texts), num_threads=library_threads()))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control pieces spelled out."""
        pieces: list[str] = []
        plain: list[int] = []
        for number in map(int, ids):
            if self._model.is_control(number):
                pieces += [self._model.decode(plain), self._model.id_to_piece(number)]
                plain = []
            else:
                plain.append(number)
        return "".join([*pieces, self._model.decode(plain)])

    @property
    def control_ids(self) -> list[int]:
        """Ids of the control pieces."""
        return [number for number in range(self._model.get_piece_size()) if self._model.is_control(number)]
