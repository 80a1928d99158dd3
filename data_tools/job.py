"""What a command that writes a dataset is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from data_tools.adapters import adapter_named, check_adapter
from data_tools.atomic_files import beside
from data_tools.errors import DataError, UsageError
from data_tools.manifest import Manifest
from data_tools.max_bad import parse_max_bad
from data_tools.parts import Part
from data_tools.tokenizer import Tokenizer, is_model

if TYPE_CHECKING:
    from data_tools.adapters.adapter import Adapter
    from data_tools.bpe import EngineName, SpecialTokens
    from data_tools.encode import BlockEncoder
    from data_tools.selection import AnswerRule, Where

VERIFY_SAMPLE = 1_000


@dataclass(frozen=True)
class DatasetJob:
    """One dataset to write, or two where documents are held out: what `tokenize` and `chat` have in common.

    Attributes:
        inputs: Files, folders, globs, `-`; read in this order.
        tokenizer: A tokenizer folder, or its tokenizer.json.
        output: PREFIX of the files.
        adapter: Reads the records.
        where: Takes some documents and leaves the others out; None: all are taken.
        special_tokens: What text that spells a control token gives; see `data_tools.bpe`.
        hold_out_percent: Of the documents, by the hash of their id, that go to PREFIX.validation.
        on_error: What a record without a document does: stop the job, or be counted and listed.
        max_bad: More such records than this (`100`, `0.5%`) end the job; empty: any number may be.
        rejects: Where they are listed; None: `PREFIX.rejects.jsonl`, if there are any.
        overwrite: Whether whatever stands at PREFIX may be replaced.
        bpe: Library that encodes.
        part: The part of the only input that is read; None: all of all inputs.
        validation: PREFIX of the documents that are held out; None: PREFIX.validation.
        command: The command line, for the manifest.
    """

    inputs: tuple[Path, ...]
    tokenizer: Path
    output: Path
    adapter: str = "text"
    where: Where | None = None
    special_tokens: SpecialTokens = "literal"
    hold_out_percent: float = 0.0
    on_error: Literal["fail", "skip"] = "fail"
    max_bad: str = ""
    rejects: Path | None = None
    overwrite: bool = False
    bpe: EngineName = "auto"
    part: Part | None = None
    validation: Path | None = None
    command: str = ""

    suffixes: ClassVar[tuple[str, ...]] = (".bin", ".idx", ".origin")
    """Files of a dataset beside its manifest."""

    @property
    def rejects_path(self) -> Path:
        """Where rejected records are listed."""
        return self.rejects or beside(self.output, ".rejects.jsonl")

    @property
    def validation_output(self) -> Path:
        """PREFIX of the documents that are held out."""
        return self.validation or beside(self.output, ".validation")

    @property
    def outputs(self) -> list[Path]:
        """The prefixes that are written; the first one's manifest comes last."""
        return [self.output, self.validation_output] if self.hold_out_percent else [self.output]

    @property
    def reads(self) -> Adapter:
        """The adapter.

        Raises:
            UsageError: If there is none of that name, or it takes no key.
        """
        return adapter_named(self.adapter)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the tokens, beside the tokenizer and the input; named as the options are."""
        names = ("adapter", "special_tokens", "hold_out_percent")
        return {name: getattr(self, name) for name in names} | {"where": str(self.where or "")}

    def settings_of(self, manifest: Manifest) -> dict[str, Any]:
        """The same of a finished dataset.

        Raises:
            DataError: If it is of another kind.
        """
        raise NotImplementedError

    def load_encoder(self) -> type[BlockEncoder]:
        """What turns its records into tokens; a finished job never comes to it."""
        raise NotImplementedError

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, with the library that encodes."""
        return Tokenizer.load_for_job(self.tokenizer, special_tokens=self.special_tokens, engine=self.bpe)

    def check(self) -> None:
        """Refuses what contradicts itself.

        Raises:
            UsageError: Naming both options.
        """
        if self.on_error == "fail":
            for option, value in (("--rejects", self.rejects), ("--max-bad", self.max_bad)):
                if value:
                    raise UsageError(
                        f"{option}: concerns records that --on-error skip leaves out; give both or neither"
                    )
        if not 0 <= self.hold_out_percent < 100:
            raise UsageError(f"--hold-out: {self.hold_out_percent:g}% is not from 0% to below 100%")
        parse_max_bad(self.max_bad)
        check_adapter(self.adapter)


@dataclass(frozen=True)
class TokenizeJob(DatasetJob):
    """What `tokenize` is asked to do.

    Attributes:
        key: Key of the text, for the adapter `text`; None: its default.
        append_eod: Whether each document ends with the end-of-document id.
        answer_rule: Says where the answer starts in texts that mark none.
        compat: `megatron`: what preprocess_data.py writes. It parses control tokens and keeps empty
            texts as documents without a token.
        verify_sample: Documents that are encoded by both libraries and compared.
    """

    key: str | None = None
    append_eod: bool = False
    answer_rule: AnswerRule | None = None
    compat: Literal["", "megatron"] = ""
    verify_sample: int = VERIFY_SAMPLE

    @property
    def reads(self) -> Adapter:
        """The adapter, told the key."""
        return adapter_named(self.adapter, key=self.key)

    @property
    def text_key(self) -> str:
        """Key of the text, for the manifest; empty where the adapter knows its columns."""
        return (self.key or "text") if self.adapter == "text" else ""

    @property
    def settings(self) -> dict[str, Any]:
        """As in `DatasetJob`."""
        own = {"key": self.text_key, "append_eod": self.append_eod, "compat": self.compat}
        return super().settings | own | {"answer_rule": self.answer_rule.text if self.answer_rule else ""}

    def settings_of(self, manifest: Manifest) -> dict[str, Any]:
        """As in `DatasetJob`."""
        if manifest.chat:
            raise DataError(f"{self.output}: holds conversations; give --overwrite, or another --output")
        own = {"key": manifest.text_key}
        return {name: own.get(name, getattr(manifest, name, None)) for name in self.settings}

    def load_encoder(self) -> type[BlockEncoder]:
        """As in `DatasetJob`."""
        from data_tools.encode import Encoder

        return Encoder

    def check(self) -> None:
        """As in `DatasetJob`."""
        super().check()
        check_adapter(self.adapter, key=self.key)
        if self.compat and self.special_tokens != "parse":
            raise UsageError(
                f"--special-tokens {self.special_tokens}: preprocess_data.py parses control tokens; "
                "leave it out, or leave out --compat megatron"
            )
        if self.special_tokens != "literal" and not self.compat and is_model(self.tokenizer):
            raise UsageError(
                f"--special-tokens {self.special_tokens}: no text spells a control piece of a SentencePiece model; "
                "leave it out"
            )
        if self.compat and (self.where or self.answer_rule):
            raise UsageError(
                f"{'--where' if self.where else '--answer-rule'}: preprocess_data.py takes every document; "
                "leave it out, or leave out --compat megatron"
            )
        if self.verify_sample < 0:
            raise UsageError(f"--verify-sample: {self.verify_sample} is below 0")
