"""Tokenizers in a folder: load, describe, train.

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

A folder may hold a SentencePiece model instead, `tokenizer.model` or the only `*.model` in it; see
`sentencepiece_model.py`. Where both are there, tokenizer.json is read; naming the file chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.errors import DataError
from data_tools.tokenizer_json import TokenizerFacts as TokenizerFacts
from data_tools.tokenizer_json import (
    eod_token_of,
    facts_of,
    fingerprint_of,
    fingerprint_of_file,
    made_facts,
    read_tokenizer,
    special_tokens_of,
)

if TYPE_CHECKING:
    from data_tools.bpe import ChosenEngine, Encoded, EngineName, Reference, SpecialTokens

EOD_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
CONTROL_TOKENS = (EOD_TOKEN, PAD_TOKEN, "<|im_start|>", "<|im_end|>")
MARKUP_TOKENS = ("<think>", "</think>")
_LARGE_BYTES = 1 << 20
"""Size of a tokenizer.json from which on a process of its own takes less memory than it costs."""
RESERVED_TOKENS = tuple(f"<|reserved_{number}|>" for number in range(10))


def fingerprint(tokenizer: str | Path) -> str:
    """Identity of a tokenizer: sha256 hex over the bytes of its file, then the end-of-document token.

    Raises:
        DataError: If there is no tokenizer.
    """
    path = tokenizer_file(tokenizer)
    if is_model(path):
        return describe(tokenizer).fingerprint
    return fingerprint_of_file(path)


def describe(tokenizer: str | Path) -> TokenizerFacts:
    """The facts of a tokenizer, from tokenizer.json alone; imports neither `tokenizers` nor torch.

    Args:
        tokenizer: The folder, or the file.

    Raises:
        DataError: If there is no tokenizer, or its end-of-document token has no id.
        SetupError: If it is a SentencePiece model, and that library is not installed.
    """
    path = tokenizer_file(tokenizer)
    content = read_tokenizer(path)
    if is_json(content):
        return facts_of(path, content)
    from data_tools.sentencepiece_model import model_facts

    return model_facts(path, content)


def special_tokens(tokenizer: str | Path) -> dict[str, int]:
    """Ids of the added tokens that a tokenizer.json calls special; of a SentencePiece model none.

    Raises:
        DataError: If there is no tokenizer.
    """
    path = tokenizer_file(tokenizer)
    content = read_tokenizer(path)
    return special_tokens_of(path, content) if is_json(content) else {}


def tokenizer_file(tokenizer: str | Path) -> Path:
    """The tokenizer.json or SentencePiece model of a tokenizer folder, or that file itself.

    Raises:
        DataError: If the folder holds several models.
    """
    path = Path(tokenizer)
    json_file, model = path / "tokenizer.json", path / "tokenizer.model"
    if path.is_file():
        return path
    if json_file.exists() or not path.is_dir():
        return json_file
    models = [model] if model.exists() else sorted(path.glob("*.model"))
    if len(models) > 1:
        raise DataError(f"{path}: holds {', '.join(found.name for found in models)}; name the one to read")
    return models[0] if models else json_file


def is_json(content: bytes) -> bool:
    """Whether a tokenizer is a tokenizer.json; a SentencePiece model starts with the byte 0a and then no brace.

    >>> is_json(b'{"version"'), is_json(bytes([10, 14, 10]))
    (True, False)
    """
    return content.lstrip().startswith((b"{", b"[")) or not content


def is_model(tokenizer: str | Path) -> bool:
    """Whether a tokenizer is a SentencePiece model; what cannot be read is none."""
    path = tokenizer_file(tokenizer)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return not is_json(file.read(64))


def tokenizer_name(tokenizer: str | Path) -> str:
    """What people call a tokenizer: the name of its folder."""
    return tokenizer_file(tokenizer).resolve().parent.name


class Tokenizer:
    """A tokenizer that never lets text forge a control token, unless it is told to.

    Attributes:
        facts: What a plan needs to know about it.
        reference: The same tokenizer in the library by which the fast one is judged: `tokenizers`, or
            `sentencepiece` for its models.
    """

    def __init__(self, facts: TokenizerFacts, reference: Reference, choose: Callable[[], ChosenEngine]) -> None:
        self.facts = facts
        self.reference = reference
        self._choose = choose

    @classmethod
    def load(
        cls, folder: str | Path, *, special_tokens: SpecialTokens = "literal", engine: EngineName = "auto"
    ) -> Tokenizer:
        """Loads a tokenizer.

        Args:
            folder: The folder, or the tokenizer.json or SentencePiece model in it.
            special_tokens: What text that spells a control token gives; see `data_tools.bpe`.
            engine: Library that encodes batches.

        Raises:
            DataError: If there is no tokenizer that its library can read.
            SetupError: If that library is not installed.
        """
        from data_tools.bpe import HuggingFace, choose_engine

        path = tokenizer_file(folder)
        content = read_tokenizer(path)
        if not is_json(content):
            return cls._load_model(path, content, engine)
        try:
            reference = HuggingFace(content, special_tokens=special_tokens)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path}: not readable by tokenizers: {error}") from None
        facts = facts_of(path, content, reference.token_ids)
        return cls(facts, reference, lambda: choose_engine(engine, content, reference, special_tokens=special_tokens))

    @classmethod
    def load_for_job(cls, folder: str | Path, *, special_tokens: SpecialTokens, engine: EngineName) -> Tokenizer:
        """The same with less memory, for a job that encodes with gigatoken and asks `reference` about a sample only.

        Where the vocabulary is large and gigatoken takes it, `reference` is a process of its own. Call it before
        numpy and whatever else the job needs is imported.

        Raises:
            DataError: As `load` does, or if tokenizer.json is changed meanwhile.
            SetupError: As `load` does, or if the process dies.
        """
        path = tokenizer_file(folder)
        if engine == "tokenizers" or is_model(path) or not path.is_file() or path.stat().st_size < _LARGE_BYTES:
            return cls.load(folder, special_tokens=special_tokens, engine=engine)
        from data_tools.reference_process import ReferenceProcess

        token = eod_token_of(path)
        reference = ReferenceProcess(path, special_tokens=special_tokens, eod_token=token)
        content = read_tokenizer(path)
        if sha256(content).hexdigest() != reference.sha256:
            raise DataError(f"{path}: was changed while it was read; run the command again")
        from data_tools.bpe import choose_engine

        chosen = choose_engine(engine, content, reference, special_tokens=special_tokens)
        if chosen.engine is reference:  # gigatoken does not take it: the other library encodes, in this process
            reference.end()
            slow = cls.load(folder, special_tokens=special_tokens, engine="tokenizers")
            return cls(slow.facts, slow.reference, lambda: replace(slow.chosen, reason=chosen.reason))
        facts = made_facts(
            path,
            fingerprint_of(content, token),
            token,
            eod_id=reference.eod_id,
            largest_id=reference.largest_id,
        )
        return cls(facts, reference, lambda: chosen)

    @classmethod
    def _load_model(cls, path: Path, content: bytes, engine: EngineName) -> Tokenizer:
        from data_tools.bpe import choose_model_engine
        from data_tools.sentencepiece_model import SentencePiece, model_facts

        reference = SentencePiece(path, content)
        return cls(model_facts(path, content), reference, lambda: choose_model_engine(engine, content, reference))

    @cached_property
    def chosen(self) -> ChosenEngine:
        """What encodes batches; loaded at its first use, which a dialogue never comes to.

        Raises:
            SetupError: If the engine was chosen by name and does not take the tokenizer.
        """
        return self._choose()

    @cached_property
    def control_ids(self) -> list[int]:
        """Ids of the added tokens that tokenizer.json calls special, or of the control pieces of a model."""
        return self.reference.control_ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; no end-of-document id is added."""
        return self.reference.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text, encoded in parallel; equal to `encode` of each."""
        return self.chosen.engine.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens spelled out."""
        return self.reference.decode(ids)

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
