"""What `tokenize` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_tools.adapters import adapter
from data_tools.adapters.adapter import Adapter
from data_tools.atomic_files import beside
from data_tools.bpe import EngineName, SpecialTokens
from data_tools.errors import UsageError
from data_tools.parts import Part
from data_tools.rejects import parse_max_bad
from data_tools.selection import AnswerRule, Where

VERIFY_SAMPLE = 1_000


@dataclass(frozen=True)
class TokenizeJob:
    """One dataset to write, or two where documents are held out.

    Attributes:
        inputs: Files, folders, globs, `-`; read in this order.
        tokenizer: A tokenizer folder, or its tokenizer.json.
        output: PREFIX of the files.
        key: Key of the text, for the adapter `text`; None: its default.
        adapter: Reads the records.
        append_eod: Whether each document ends with the end-of-document id.
        where: Takes some documents and leaves the others out; None: all are taken.
        answer_rule: Says where the answer starts in texts that mark none.
        special_tokens: What text that spells a control token gives; see `data_tools.bpe`.
        compat: `megatron`: what preprocess_data.py writes. It parses control tokens and keeps empty
            texts as documents without a token.
        hold_out_percent: Of the documents, by the hash of their id, that go to PREFIX.validation.
        on_error: What a record without text does: stop the job, or be counted and listed.
        max_bad: More such records than this (`100`, `0.5%`) end the job; empty: any number may be.
        rejects: Where they are listed; None: `PREFIX.rejects.jsonl`, if there are any.
        overwrite: Whether whatever stands at PREFIX may be replaced.
        bpe: Library that encodes.
        verify_sample: Documents that are encoded by both libraries and compared.
        part: The part of the only input that is read; None: all of all inputs.
        validation: PREFIX of the documents that are held out; None: PREFIX.validation.
        command: The command line, for the manifest.
    """

    inputs: tuple[Path, ...]
    tokenizer: Path
    output: Path
    key: str | None = None
    adapter: str = "text"
    append_eod: bool = False
    where: Where | None = None
    answer_rule: AnswerRule | None = None
    special_tokens: SpecialTokens = "literal"
    compat: Literal["", "megatron"] = ""
    hold_out_percent: float = 0.0
    on_error: Literal["fail", "skip"] = "fail"
    max_bad: str = ""
    rejects: Path | None = None
    overwrite: bool = False
    bpe: EngineName = "auto"
    verify_sample: int = VERIFY_SAMPLE
    part: Part | None = None
    validation: Path | None = None
    command: str = ""

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
        return adapter(self.adapter, key=self.key)

    @property
    def text_key(self) -> str:
        """Key of the text, for the manifest; empty where the adapter knows its columns."""
        return (self.key or "text") if self.adapter == "text" else ""

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
        if self.compat and self.special_tokens != "parse":
            raise UsageError(
                f"--special-tokens {self.special_tokens}: preprocess_data.py parses control tokens; "
                "leave it out, or leave out --compat megatron"
            )
        if self.compat and (self.where or self.answer_rule):
            raise UsageError(
                f"{'--where' if self.where else '--answer-rule'}: preprocess_data.py takes every document; "
                "leave it out, or leave out --compat megatron"
            )
        if not 0 <= self.hold_out_percent < 100:
            raise UsageError(f"--hold-out: {self.hold_out_percent:g}% is not from 0% to below 100%")
        if self.verify_sample < 0:
            raise UsageError(f"--verify-sample: {self.verify_sample} is below 0")
        parse_max_bad(self.max_bad)
        _ = self.reads
