"""JSONL into `PREFIX.bin/.idx` and, last of all, `PREFIX.manifest.json`.

What a kill leaves, by the moment at which it strikes:

| moment              | on the disk                                                      | next run     |
|---------------------|------------------------------------------------------------------|--------------|
| documents written   | `.partial` files; the old dataset, if any, untouched             | starts again |
| files get names     | no manifest, so readers refuse; `PREFIX.manifest.json.partial`   | starts again |
| afterwards          | the new dataset                                                  | already done |

So at no moment does a manifest stand beside files that it does not describe.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_tools.atomic_files import beside, only_writer, sync_folder
from data_tools.encode import Encoder, PartialFiles
from data_tools.errors import DataError, UsageError
from data_tools.inputs import Inputs, find_inputs
from data_tools.manifest import Manifest, check_files, manifest_path, read_manifest, write_manifest
from data_tools.progress import Progress
from data_tools.readers import READER_VERSION, hash_file
from data_tools.tokenizer import Tokenizer, TokenizerFacts, describe


@dataclass(frozen=True)
class TokenizeJob:
    """What `tokenize` was asked to do.

    Attributes:
        inputs: Files, folders, globs, `-`; read in this order.
        tokenizer: A tokenizer folder.
        output: PREFIX of the three files.
        key: Key of the text.
        append_eod: Whether each document ends with the end-of-document id.
        on_error: What a line without text does: stop the job, or be counted and listed.
        rejects: Where rejected lines are listed; None: `PREFIX.rejects.jsonl`, if there are any.
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
        """Where rejected lines are listed."""
        return self.rejects or beside(self.output, ".rejects.jsonl")


@dataclass(frozen=True)
class TokenizeResult:
    """The finished dataset, and whether it had been finished before."""

    manifest: Manifest
    was_done: bool


def tokenize(job: TokenizeJob, progress: Progress) -> TokenizeResult:
    """Tokenises the inputs into a dataset, unless it is there already.

    Args:
        job: What to do.
        progress: Is told of every byte of input.

    Raises:
        UsageError: If the command contradicts itself.
        DataError: If an input or the tokenizer cannot be read, a line has no text and `on_error` is
            `fail`, no document is left, or PREFIX holds something else and `overwrite` is not given.
    """
    inputs = find_inputs(job.inputs)
    _check_command(job, inputs)
    facts = describe(job.tokenizer)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(job.output):
        if not job.overwrite and (done := _finished_before(job, inputs, facts)):
            return TokenizeResult(manifest=done, was_done=True)
        partial = PartialFiles(*(beside(path, ".partial") for path in (*_pair(job.output), job.rejects_path)))
        encoder = Encoder(
            Tokenizer.load(job.tokenizer),
            partial,
            key=job.key,
            append_eod=job.append_eod,
            skips_bad_lines=job.on_error == "skip",
        )
        with encoder:
            sources = [encoder.read(file, progress) for file in inputs.files]
            manifest = encoder.finish(sources, tokenizer_name=job.tokenizer.resolve().name, command=job.command)
        _publish(job, partial, manifest)
        return TokenizeResult(manifest=manifest, was_done=False)


def _pair(output: Path) -> tuple[Path, Path]:
    return beside(output, ".bin"), beside(output, ".idx")


def _check_command(job: TokenizeJob, inputs: Inputs) -> None:
    resolved = {file.path.resolve() for file in inputs.files}
    for written in (*_pair(job.output), manifest_path(job.output), job.rejects_path):
        if written.resolve() in resolved:
            raise UsageError(f"{written}: is an input and would be written too; choose another --output or --rejects")
    if job.rejects and job.on_error == "fail":
        raise UsageError("--rejects: lists lines that --on-error skip leaves out; give both or neither")


def _finished_before(job: TokenizeJob, inputs: Inputs, facts: TokenizerFacts) -> Manifest | None:
    """The manifest at PREFIX if it is of this very job; None if no finished dataset stands there."""
    if not manifest_path(job.output).exists():
        was_interrupted = beside(manifest_path(job.output), ".partial").exists()
        there = [str(path) for path in _pair(job.output) if path.exists()]
        if there and not was_interrupted:
            raise DataError(
                f"{job.output}: {' and '.join(there)} without a manifest; give --overwrite, or another --output"
            )
        return None
    manifest = read_manifest(job.output)
    differences = _differences(job, inputs, facts, manifest)
    if differences:
        raise DataError(
            f"{job.output}: holds another dataset; give --overwrite, or another --output\n  " + "\n  ".join(differences)
        )
    check_files(job.output, manifest)
    return manifest


def _differences(job: TokenizeJob, inputs: Inputs, facts: TokenizerFacts, manifest: Manifest) -> list[str]:
    """What would make this job's dataset another one, a line each."""
    pairs: list[tuple[str, object, object]] = [
        ("--tokenizer (fingerprint)", manifest.tokenizer.fingerprint, facts.fingerprint),
        ("--append-eod", manifest.append_eod, job.append_eod),
        ("--key", manifest.text_key, job.key),
        ("reader version", manifest.versions.get("reader"), READER_VERSION),
        ("number of --input files", len(manifest.sources), len(inputs.files)),
    ]
    if manifest.rejected and job.on_error == "fail":
        pairs.append(("--on-error", f"skip, with {manifest.rejected:,} lines rejected", "fail"))
    for file, source in zip(inputs.files, manifest.sources, strict=False):
        pairs.append((f"sha256 of {file.path}", source.sha256, hash_file(file.path).sha256))
    return [f"{name}: it has {there}, asked for {asked}" for name, there, asked in pairs if there != asked]


def _publish(job: TokenizeJob, partial: PartialFiles, manifest: Manifest) -> None:
    """Gives the finished files their names, the manifest last; see the table at the top of this file."""
    beside(manifest_path(job.output), ".partial").touch()
    manifest_path(job.output).unlink(missing_ok=True)
    sync_folder(job.output.parent)
    bin_path, idx_path = _pair(job.output)
    os.replace(partial.bin, bin_path)
    os.replace(partial.idx, idx_path)
    if manifest.rejected or job.rejects:
        os.replace(partial.rejects, job.rejects_path)
    else:  # a list left by an earlier dataset at PREFIX would be taken for this one's
        partial.rejects.unlink()
        job.rejects_path.unlink(missing_ok=True)
    sync_folder(job.output.parent)
    write_manifest(job.output, manifest)
