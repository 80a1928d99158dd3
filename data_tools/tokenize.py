"""JSONL into `PREFIX.bin/.idx` and, last of all, `PREFIX.manifest.json`.

What a kill leaves, by the moment at which it strikes:

| moment                                | on the disk | the next run |
|---------------------------------------|-------------|--------------|
| while documents are written           | the old dataset, if any, untouched; `.partial` files | starts again |
| while finished files get their names  | no manifest: readers refuse the pair; `PREFIX.manifest.json.partial` | starts again |
| afterwards                            | the new dataset | says that it is done |

So at no moment does a manifest stand beside files that it does not describe.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.atomic_files import beside, only_writer, sync_folder
from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedWriter, WrittenPair, dtype_for
from data_tools.manifest import (
    BLOCK_DOCUMENTS,
    Manifest,
    SourceFile,
    TokenizerRecord,
    check_files,
    manifest_path,
    read_manifest,
    write_manifest,
)
from data_tools.readers import READER_VERSION, BadRecord, JsonLines, hash_file, text_of_line
from data_tools.tokenizer import Tokenizer, TokenizerFacts, describe

_ENCODE_CHARACTERS = 1 << 20
"""Characters handed to the tokenizer at once: enough to keep its threads busy, small beside a block."""


@dataclass(frozen=True)
class TokenizeJob:
    """What `tokenize` was asked to do.

    Attributes:
        inputs: JSONL files, read in this order.
        tokenizer: A tokenizer folder.
        output: PREFIX of the three files.
        key: Key of the text.
        append_eod: Whether each document ends with the end-of-document id.
        on_error: What a line without text does: stop the job, or be counted and listed.
        rejects: Where rejected lines are listed.
        overwrite: Whether whatever stands at PREFIX may be replaced.
        command: The command line, for the manifest.
    """

    inputs: tuple[Path, ...]
    tokenizer: Path
    output: Path
    key: str = "text"
    append_eod: bool = False
    on_error: Literal["fail", "skip"] = "fail"
    rejects: Path | None = None
    overwrite: bool = False
    command: str = ""

    @property
    def rejects_path(self) -> Path:
        """Where rejected lines are listed; beside the dataset when not said."""
        return self.rejects or beside(self.output, ".rejects.jsonl")


@dataclass(frozen=True)
class TokenizeResult:
    """The finished dataset, and whether it had been finished before."""

    manifest: Manifest
    was_done: bool


class Progress(Protocol):
    """Is told how far the work is."""

    def advance(self, size: int) -> None:
        """`size` more bytes of input are done."""


def tokenize(job: TokenizeJob, progress: Progress) -> TokenizeResult:
    """Tokenises the inputs into a dataset, unless it is there already.

    Raises:
        UsageError: If the command contradicts itself.
        DataError: If an input or the tokenizer cannot be read, a line has no text and `on_error` is
            `fail`, no document is left, or PREFIX holds something else and `overwrite` is not given.
    """
    _check_paths(job)
    facts = describe(job.tokenizer)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(job.output):
        if not job.overwrite and (done := _finished_before(job, facts)):
            return TokenizeResult(manifest=done, was_done=True)
        work = _Work(job, Tokenizer.load(job.tokenizer))
        with work.opened():
            sources = [work.read(path, progress) for path in job.inputs]
            manifest = work.finish(sources)
        _publish(job, manifest)
        return TokenizeResult(manifest=manifest, was_done=False)


def _check_paths(job: TokenizeJob) -> None:
    resolved = [path.resolve() for path in job.inputs]
    for path in resolved:
        if resolved.count(path) > 1:
            raise UsageError(f"--input: {path} is given twice; its documents would be repeated")
    for written in (*_final_paths(job.output), job.rejects_path):
        if written.resolve() in resolved:
            raise UsageError(f"--output: {written} is an input too; choose another prefix")


def _final_paths(output: Path) -> tuple[Path, Path]:
    return beside(output, ".bin"), beside(output, ".idx")


def _finished_before(job: TokenizeJob, facts: TokenizerFacts) -> Manifest | None:
    """The manifest at PREFIX if this very job wrote it; None if nothing stands there."""
    if not manifest_path(job.output).exists():
        interrupted = beside(manifest_path(job.output), ".partial").exists()
        there = [str(path) for path in _final_paths(job.output) if path.exists()]
        if there and not interrupted:
            raise DataError(
                f"{job.output}: {' and '.join(there)} without a manifest; give --overwrite, or another --output"
            )
        return None
    manifest = read_manifest(job.output)
    differences = _differences(job, facts, manifest)
    if differences:
        raise DataError(
            f"{job.output}: holds another dataset; give --overwrite, or another --output\n  " + "\n  ".join(differences)
        )
    check_files(job.output, manifest)
    return manifest


def _differences(job: TokenizeJob, facts: TokenizerFacts, manifest: Manifest) -> list[str]:
    """What would make this job's dataset another one, a sentence each."""
    pairs: list[tuple[str, object, object]] = [
        ("--tokenizer (fingerprint)", manifest.tokenizer.fingerprint, facts.fingerprint),
        ("--append-eod", manifest.append_eod, job.append_eod),
        ("--key", manifest.text_key, job.key),
        ("reader version", manifest.versions.get("reader"), READER_VERSION),
        ("number of --input files", len(manifest.sources), len(job.inputs)),
    ]
    if manifest.rejected and job.on_error == "fail":
        pairs.append(("--on-error", f"skip, with {manifest.rejected:,} lines rejected", "fail"))
    for path, source in zip(job.inputs, manifest.sources, strict=False):
        pairs.append((f"sha256 of {path}", source.sha256, hash_file(path).sha256))
    return [f"{name}: it has {there}, asked for {asked}" for name, there, asked in pairs if there != asked]


@dataclass
class _Batch:
    """Texts that wait to be encoded."""

    texts: list[str] = field(default_factory=list)
    characters: int = 0

    def add(self, text: str) -> bool:
        """Takes a text; True when the batch is full."""
        self.texts.append(text)
        self.characters += len(text)
        return self.characters >= _ENCODE_CHARACTERS

    def take(self) -> list[str]:
        texts, self.texts, self.characters = self.texts, [], 0
        return texts


class _Work:
    """One job while it runs: the open `.partial` files and the counts."""

    def __init__(self, job: TokenizeJob, tokenizer: Tokenizer) -> None:
        self.job = job
        self.tokenizer = tokenizer
        self.dtype = dtype_for(tokenizer.vocab_size)
        self.rejected_by_reason: dict[str, int] = {}
        self._partials = {path: beside(path, ".partial") for path in (*_final_paths(job.output), job.rejects_path)}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The `.partial` files, removed again if the job fails."""
        bin_path, idx_path, rejects_path = self._partials.values()
        rejects_path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = IndexedWriter(bin_path, dtype=self.dtype)
        try:
            with rejects_path.open("wb") as rejects:
                self._rejects: BinaryIO = rejects
                yield
        except BaseException:
            self._writer.close()
            for path in (bin_path, idx_path, rejects_path):
                path.unlink(missing_ok=True)
            raise

    def read(self, path: Path, progress: Progress) -> SourceFile:
        """Tokenises one file."""
        source = JsonLines(path)
        batch = _Batch()
        for block in source.blocks():
            for number, line in enumerate(block.lines, start=block.first_line):
                try:
                    is_full = batch.add(text_of_line(line, self.job.key))
                except BadRecord as error:
                    self._reject(path, number, error)
                    continue
                if is_full:
                    self._encode(batch.take())
            self._encode(batch.take())
            progress.advance(block.size)
        return source.seen()

    def _reject(self, path: Path, line: int, error: BadRecord) -> None:
        if self.job.on_error == "fail":
            raise DataError(
                f"{path}:{line}: {error}; mend the line, or give --on-error skip to leave out such lines and list them"
            )
        self.rejected_by_reason[error.reason] = self.rejected_by_reason.get(error.reason, 0) + 1
        row = {"file": str(path), "line": line, "reason": error.reason, "detail": error.detail}
        self._rejects.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def _encode(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        encoded = self.tokenizer.encode_batch(texts)
        if self.job.append_eod:
            for ids in encoded:
                ids.append(self.tokenizer.eod_id)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        flat = np.fromiter((number for ids in encoded for number in ids), np.int64, int(lengths.sum()))
        self._writer.add_documents(flat, lengths)

    def finish(self, sources: list[SourceFile]) -> Manifest:
        """Completes the `.partial` files and describes them."""
        bin_path, idx_path, _ = self._partials.values()
        pair = self._writer.finish(idx_path)
        if not len(pair.lengths):
            names = ", ".join(str(path) for path in self.job.inputs)
            raise DataError(
                f"{names}: no document has text ({sum(self.rejected_by_reason.values())} lines rejected); "
                "nothing was written"
            )
        return self._manifest(pair, sources)

    def _manifest(self, pair: WrittenPair, sources: list[SourceFile]) -> Manifest:
        tokenizer, job = self.tokenizer, self.job
        return Manifest(
            documents=len(pair.lengths),
            tokens=int(pair.lengths.sum(dtype=np.int64)),
            rejected=sum(self.rejected_by_reason.values()),
            rejected_by_reason=dict(sorted(self.rejected_by_reason.items())),
            bin_bytes=pair.bin_bytes,
            idx_bytes=pair.idx_bytes,
            bin_sha256=pair.bin_sha256,
            idx_sha256=pair.idx_sha256,
            dtype=self.dtype,
            max_token_id=pair.max_token_id,
            tokens_per_block=tokens_per_block(pair.lengths, block_documents=BLOCK_DOCUMENTS),
            append_eod=job.append_eod,
            eod_id=tokenizer.eod_id,
            text_key=job.key,
            tokenizer=TokenizerRecord(
                fingerprint=tokenizer.fingerprint,
                vocab_size=tokenizer.vocab_size,
                name=job.tokenizer.resolve().name,
            ),
            sources=sources,
            command=job.command,
            versions=_versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def tokens_per_block(lengths: npt.NDArray[np.int32], *, block_documents: int) -> list[int]:
    """Tokens of each run of `block_documents` documents; the last run may be shorter.

    Args:
        lengths: [documents] tokens of each.
        block_documents: Documents of one run.

    >>> tokens_per_block(np.array([5, 1, 7], np.int32), block_documents=2)
    [6, 7]
    """
    starts = np.arange(0, len(lengths), block_documents)
    return [int(total) for total in np.add.reduceat(lengths.astype(np.int64), starts)] if len(lengths) else []


def _versions() -> dict[str, str]:
    import tokenizers

    return {
        "reader": READER_VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
    }


def _publish(job: TokenizeJob, manifest: Manifest) -> None:
    """Gives the finished files their names, the manifest last; see the table at the top of this file."""
    intent = beside(manifest_path(job.output), ".partial")
    intent.touch()
    manifest_path(job.output).unlink(missing_ok=True)
    sync_folder(job.output.parent)
    for path in _final_paths(job.output):
        os.replace(beside(path, ".partial"), path)
    if manifest.rejected:
        os.replace(beside(job.rejects_path, ".partial"), job.rejects_path)
    else:  # a list of an earlier run would be taken for this one's
        beside(job.rejects_path, ".partial").unlink()
        job.rejects_path.unlink(missing_ok=True)
    sync_folder(job.output.parent)
    write_manifest(job.output, manifest)
