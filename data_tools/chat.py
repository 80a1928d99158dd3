"""Conversations into `PREFIX.bin/.idx`, `PREFIX.mask` and, last of all, `PREFIX.manifest.json`.

One document a conversation, so stock Megatron reads the pair; `loss_mask.py` describes the mask. A kill
leaves what it leaves of `tokenize`: partial files, never a manifest beside files of another job.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_tools.adapters import adapter as adapter_named
from data_tools.adapters.adapter import Adapter
from data_tools.atomic_files import beside, only_writer, sync_folder
from data_tools.chat_template import template_source
from data_tools.chat_write import ChatFiles, ChatMaker, ChatWriter
from data_tools.encode import tokens_per_block
from data_tools.errors import DataError, UsageError
from data_tools.indexed import dtype_for
from data_tools.inputs import Inputs, find_inputs, open_part
from data_tools.loss_mask import mask_path
from data_tools.manifest import (
    BLOCK_DOCUMENTS,
    ChatRecord,
    Manifest,
    SourceFile,
    TokenizerRecord,
    check_files,
    manifest_path,
    read_manifest,
    write_manifest,
)
from data_tools.parts import InputFile, Part
from data_tools.progress import Progress
from data_tools.readers import READER_VERSION, hash_file
from data_tools.speech import TRAINABLE, Thinking
from data_tools.tokenizer import TokenizerFacts, describe

CHAT_VERSION = "1"
"""Raised when the same conversation would give other ids or another mask; recorded in every manifest."""


@dataclass(frozen=True, kw_only=True)
class ChatJob:
    """What `chat` was asked to do.

    Attributes:
        inputs: Files, folders, globs, `-`.
        tokenizer: A tokenizer folder.
        output: PREFIX of the four files.
        adapter: Name of the adapter that makes conversations of records.
        chat_template: Takes the place of the tokenizer's.
        train_on: Some of `speech.TRAINABLE`, `assistant` among them.
        thinking: Which traces stay.
        on_error: What a record without a conversation does: stop the job, or be counted and listed.
        rejects: Where rejected records are listed; None: `PREFIX.rejects.jsonl`, if there are any.
        overwrite: Whether whatever stands at PREFIX may be replaced.
        command: The command line, for the manifest.
    """

    inputs: tuple[str | Path, ...]
    tokenizer: Path
    output: Path
    adapter: str = "messages"
    chat_template: Path | None = None
    train_on: frozenset[str] = frozenset(TRAINABLE)
    thinking: Thinking = "keep"
    on_error: Literal["fail", "skip"] = "fail"
    rejects: Path | None = None
    overwrite: bool = False
    command: str = ""

    @property
    def rejects_path(self) -> Path:
        """Where rejected records are listed."""
        return self.rejects or beside(self.output, ".rejects.jsonl")

    @property
    def files(self) -> ChatFiles:
        """Where the data goes."""
        return ChatFiles(
            beside(self.output, ".bin"), beside(self.output, ".idx"), mask_path(self.output), self.rejects_path
        )


@dataclass(frozen=True)
class ChatResult:
    """The finished dataset, and whether it had been finished before."""

    manifest: Manifest
    was_done: bool


@dataclass(frozen=True)
class _Prepared:
    """All that a job needs to know before it reads a conversation."""

    inputs: Inputs
    adapter: Adapter
    facts: TokenizerFacts
    template_source: str
    template_path: Path

    @property
    def template_sha256(self) -> str:
        return hashlib.sha256(self.template_source.encode()).hexdigest()


def chat(job: ChatJob, progress: Progress) -> ChatResult:
    """Makes token ids and loss masks of conversations, unless they are there already.

    Args:
        job: What to do.
        progress: Is told of every byte of input.

    Raises:
        UsageError: If the command contradicts itself.
        DataError: If an input, the tokenizer or the template cannot be read, a record gives no conversation
            and `on_error` is `fail`, no conversation is left, PREFIX holds something else and `overwrite` is
            not given, or the two ways of encoding disagree.
    """
    source, path = template_source(job.tokenizer, job.chat_template)
    prepared = _Prepared(find_inputs(job.inputs), adapter_named(job.adapter), describe(job.tokenizer), source, path)
    _check_command(job, prepared.inputs)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(job.output):
        if not job.overwrite and (done := _finished_before(job, prepared)):
            return ChatResult(done, was_done=True)
        manifest = _write(job, prepared, progress)
        return ChatResult(manifest, was_done=False)


def _check_command(job: ChatJob, inputs: Inputs) -> None:
    unknown = sorted(job.train_on - set(TRAINABLE))
    if unknown or "assistant" not in job.train_on:
        raise UsageError(
            f"--train-on: {','.join(sorted(job.train_on))}: assistant, and of {', '.join(TRAINABLE[1:])} any"
        )
    read = [file.path.resolve() for file in inputs.files]
    for written in (*job.files.all, manifest_path(job.output)):
        if written.resolve() in read:
            raise UsageError(f"{written}: is an input and would be written too; choose another --output or --rejects")
    if job.rejects and job.on_error == "fail":
        raise UsageError("--rejects: lists records that --on-error skip leaves out; give both or neither")


def _write(job: ChatJob, prepared: _Prepared, progress: Progress) -> Manifest:
    partial = ChatFiles(*(beside(path, ".partial") for path in job.files.all))
    maker = ChatMaker(
        job.tokenizer, template=prepared.template_source, thinking=job.thinking, train_on=frozenset(job.train_on)
    )
    with ChatWriter(maker, partial, skips_bad_records=job.on_error == "skip") as writer:
        sources = [_read(file, prepared.adapter, writer, progress) for file in prepared.inputs.files]
        files = ", ".join(source.path for source in sources)
        pair, chats = writer.finish(files=files)
        manifest = Manifest(
            documents=len(pair.lengths),
            tokens=int(pair.lengths.sum(dtype="int64")),
            rejected=writer.rejected.total(),
            rejected_by_reason=dict(sorted(writer.rejected.items())),
            bin_bytes=pair.bin_bytes,
            idx_bytes=pair.idx_bytes,
            bin_sha256=pair.bin_sha256,
            idx_sha256=pair.idx_sha256,
            dtype=dtype_for(prepared.facts.vocab_size),
            max_token_id=pair.max_token_id,
            tokens_per_block=tokens_per_block(pair.lengths, block_documents=BLOCK_DOCUMENTS),
            append_eod=False,
            eod_id=prepared.facts.eod_id,
            text_key="",
            tokenizer=TokenizerRecord(
                fingerprint=prepared.facts.fingerprint,
                vocab_size=prepared.facts.vocab_size,
                name=job.tokenizer.resolve().name,
            ),
            sources=sources,
            chat=ChatRecord(**_asked(job, prepared), **chats),
            command=job.command,
            versions=_versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
    _publish(job, partial, manifest)
    return manifest


def _read(file: InputFile, adapter: Adapter, writer: ChatWriter, progress: Progress) -> SourceFile:
    part = Part(file)
    reader, convert = open_part(part, adapter.columns), adapter.for_file(file.path)
    for block in reader.blocks():
        for row, raw in enumerate(block.records, start=block.first_row):
            writer.add(raw, convert, part, row)
        progress.advance(block.size)
    return reader.seen()


def _asked(job: ChatJob, prepared: _Prepared) -> dict[str, Any]:
    """What was asked for; the same names as in `ChatRecord`."""
    return {
        "adapter": job.adapter,
        "template": prepared.template_path.name,
        "template_sha256": prepared.template_sha256,
        "train_on": sorted(job.train_on),
        "thinking": job.thinking,
    }


def _versions() -> dict[str, str]:
    return {
        "chat": CHAT_VERSION,
        "reader": READER_VERSION,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jinja2", "numpy", "tokenizers")},
    }


def _finished_before(job: ChatJob, prepared: _Prepared) -> Manifest | None:
    """The manifest at PREFIX if it is of this very job; None if no finished dataset stands there."""
    path = manifest_path(job.output)
    if not path.exists():
        there = [str(path) for path in job.files.data if path.exists()]
        if there and not beside(path, ".partial").exists():
            raise DataError(
                f"{job.output}: {' and '.join(there)} without a manifest; give --overwrite, or another --output"
            )
        return None
    manifest = read_manifest(job.output)
    if differences := _differences(job, prepared, manifest):
        raise DataError(
            f"{job.output}: holds another dataset; give --overwrite, or another --output\n  " + "\n  ".join(differences)
        )
    check_files(job.output, manifest)
    return manifest


def _differences(job: ChatJob, prepared: _Prepared, manifest: Manifest) -> list[str]:
    """What would make this job's dataset another one, a line each."""
    if manifest.chat is None:
        return ["it has documents of text, asked for conversations"]
    pairs: list[tuple[str, object, object]] = [
        (name, getattr(manifest.chat, name), value)
        for name, value in _asked(job, prepared).items()
        if name != "template"
    ]
    pairs += [
        ("--tokenizer (fingerprint)", manifest.tokenizer.fingerprint, prepared.facts.fingerprint),
        ("version of chat", manifest.versions.get("chat"), CHAT_VERSION),
        ("reader version", manifest.versions.get("reader"), READER_VERSION),
        ("number of input files", len(manifest.sources), len(prepared.inputs.files)),
    ]
    if manifest.rejected and job.on_error == "fail":
        pairs.append(("--on-error", f"skip, with {manifest.rejected:,} records rejected", "fail"))
    for file, source in zip(prepared.inputs.files, manifest.sources, strict=False):
        pairs.append((f"sha256 of {file.path}", source.sha256, hash_file(file.path).sha256))
    return [f"{name}: it has {there}, asked for {asked}" for name, there, asked in pairs if there != asked]


def _publish(job: ChatJob, partial: ChatFiles, manifest: Manifest) -> None:
    """Gives the finished files their names, the manifest last."""
    beside(manifest_path(job.output), ".partial").touch()
    manifest_path(job.output).unlink(missing_ok=True)
    sync_folder(job.output.parent)
    for written, final in zip(partial.data, job.files.data, strict=True):
        os.replace(written, final)
    if manifest.rejected or job.rejects:
        os.replace(partial.rejects, job.rejects_path)
    else:  # a list left by an earlier dataset at PREFIX would be taken for this one's
        partial.rejects.unlink()
        job.rejects_path.unlink(missing_ok=True)
    sync_folder(job.output.parent)
    write_manifest(job.output, manifest)
