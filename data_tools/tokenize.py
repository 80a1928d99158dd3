"""Records into the files of a dataset and, last of all, `PREFIX.manifest.json`; `chat` runs here too.

What a kill leaves, by the moment at which it strikes:

| moment              | on the disk                                                      | next run     |
|---------------------|------------------------------------------------------------------|--------------|
| documents written   | `.partial` files; the old dataset, if any, untouched             | starts again |
| files get names     | no manifest, so readers refuse; `PREFIX.manifest.json.partial`   | starts again |
| afterwards          | the new dataset                                                  | already done |

So at no moment does a manifest stand beside files that it does not describe. Documents that are held
out are published first, to PREFIX.validation, while PREFIX has no manifest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_tools.atomic_files import beside, only_writer, sync_folder
from data_tools.encode import BlockEncoder, Encoder
from data_tools.errors import DataError, UsageError
from data_tools.formats import STDIN
from data_tools.inputs import find_inputs
from data_tools.job import DatasetJob
from data_tools.job import TokenizeJob as TokenizeJob
from data_tools.manifest import Manifest, SourceFile, check_files, manifest_path, read_manifest, write_manifest
from data_tools.parts import Part
from data_tools.progress import Progress
from data_tools.readers import READER_VERSION, hash_file
from data_tools.tokenizer import Tokenizer, TokenizerFacts, describe

_SETTLED_NS = 2_000_000_000
"""A file changed less than this before it was looked at may change again without another time of change."""


@dataclass(frozen=True)
class TokenizeResult:
    """The finished dataset, and whether it had been finished before.

    Attributes:
        manifest: Of PREFIX.
        was_done: Whether nothing was left to do.
        held_out: Manifest of PREFIX.validation, if documents are held out.
    """

    manifest: Manifest
    was_done: bool
    held_out: Manifest | None = None


def tokenize(job: TokenizeJob, progress: Progress, *, load: Callable[[], Tokenizer] | None = None) -> TokenizeResult:
    """Tokenises the inputs into a dataset, unless it is there already; see `write_dataset`."""
    return write_dataset(job, Encoder, progress, load=load)


def write_dataset(
    job: DatasetJob,
    make_encoder: type[BlockEncoder],
    progress: Progress,
    *,
    load: Callable[[], Tokenizer] | None = None,
) -> TokenizeResult:
    """Makes a dataset of the inputs, unless it is there already.

    Args:
        job: What to do.
        make_encoder: Makes what turns records into tokens.
        progress: Is told of every byte of input.
        load: Gives the job's tokenizer, if something is to be written; None: it is loaded.

    Raises:
        UsageError: If the command contradicts itself.
        SetupError: If a library that was chosen cannot do it.
        DataError: If an input or the tokenizer cannot be read, a record has no document and `on_error` is
            `fail`, no document is left, two ways of encoding disagree, or PREFIX holds something else and
            `overwrite` is not given.
    """
    job.check()
    parts = [job.part] if job.part else [Part(file) for file in find_inputs(job.inputs).files]
    _refuse_to_write_an_input(job, parts)
    facts = describe(job.tokenizer)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(job.output):
        if not job.overwrite and (done := _finished_before(job, parts, facts)):
            return TokenizeResult(done[0], was_done=True, held_out=done[1] if len(done) > 1 else None)
        tokenizer = (load or job.load_tokenizer)()
        with make_encoder(tokenizer, job, total_bytes=sum(part.size for part in parts)) as encoder:
            sources = [_read(encoder, part, number, progress) for number, part in enumerate(parts)]
            manifests = encoder.finish(sources)
        _publish(job, encoder, manifests)
        return TokenizeResult(manifests[0], was_done=False, held_out=manifests[1] if len(manifests) > 1 else None)


def _read(encoder: BlockEncoder, part: Part, number: int, progress: Progress) -> SourceFile:
    mtime_ns = _mtime_ns(part.file.path)  # before it is read: a later change shows
    return encoder.read(part, number, progress).model_copy(update={"mtime_ns": mtime_ns, "start": part.start})


def _mtime_ns(path: Path) -> int:
    """When the file was changed; 0 where that says nothing: stdin, and files changed just now."""
    if path == STDIN:
        return 0
    changed = path.stat().st_mtime_ns
    return changed if time.time_ns() - changed > _SETTLED_NS else 0


def _refuse_to_write_an_input(job: DatasetJob, parts: list[Part]) -> None:
    inputs = {part.file.path.resolve() for part in parts}
    written = [beside(prefix, suffix) for prefix in job.outputs for suffix in (*job.suffixes, ".manifest.json")]
    for path in (*written, job.rejects_path):
        if path.resolve() in inputs:
            raise UsageError(f"{path}: is an input and would be written too; choose another --output or --rejects")


def _finished_before(job: DatasetJob, parts: list[Part], facts: TokenizerFacts) -> list[Manifest]:
    """The manifests of the job's datasets if they are of this very job; none if it is not finished."""
    if not manifest_path(job.output).exists():
        was_interrupted = beside(manifest_path(job.output), ".partial").exists()
        there = [str(path) for prefix in job.outputs for path in _files(job, prefix) if path.exists()]
        if there and not was_interrupted:
            raise DataError(
                f"{job.output}: {' and '.join(there)} without a manifest; give --overwrite, or another --output"
            )
        return []
    manifests = [read_manifest(job.output)]
    if differences := _differences(job, parts, facts, manifests[0]):
        raise DataError(
            f"{job.output}: holds another dataset; give --overwrite, or another --output\n  " + "\n  ".join(differences)
        )
    manifests += [read_manifest(prefix) for prefix in job.outputs[1:]]
    for prefix, manifest in zip(job.outputs, manifests, strict=True):
        check_files(prefix, manifest)
    return manifests


def _files(job: DatasetJob, prefix: Path) -> list[Path]:
    return [beside(prefix, suffix) for suffix in job.suffixes]


def _differences(job: DatasetJob, parts: list[Part], facts: TokenizerFacts, manifest: Manifest) -> list[str]:
    """What would make this job's dataset another one, a line each."""
    had, asked_for = job.settings_of(manifest), job.settings
    pairs: list[tuple[str, object, object]] = [
        ("--tokenizer (fingerprint)", manifest.tokenizer.fingerprint, facts.fingerprint),
        *((_option(name), _said(name, had[name]), _said(name, asked_for[name])) for name in asked_for),
        ("reader version", manifest.versions.get("reader"), READER_VERSION),
        ("number of --input files", len(manifest.sources), len(parts)),
    ]
    if manifest.rejected and job.on_error == "fail":
        pairs.append(("--on-error", f"skip, with {manifest.rejected:,} lines rejected", "fail"))
    for part, source in zip(parts, manifest.sources, strict=False):
        pairs += _changes(part, source)
    return [f"{name}: it has {there}, asked for {asked}" for name, there, asked in pairs if there != asked]


def _option(setting: str) -> str:
    return "--" + setting.removesuffix("_percent").replace("_", "-")


def _said(setting: str, value: object) -> object:
    nothing = {"where": "all", "answer_rule": "none"}
    return f"{value:g}%" if setting.endswith("_percent") else value or nothing.get(setting, value)


def _changes(part: Part, source: SourceFile) -> list[tuple[str, object, object]]:
    """What tells a part of the input from the one that was read; an untouched file is not read again."""
    path = part.file.path
    if path == STDIN:
        return [("sha256 of stdin", source.sha256, "what cannot be compared before it is read")]
    pairs: list[tuple[str, object, object]] = [
        (f"first byte of {path}", source.start, part.start),
        (f"bytes of {path}", source.bytes, part.size),
    ]
    if part.start or part.end is not None or any(there != asked for _, there, asked in pairs):
        return pairs  # of a shard: its plan knows whether the file was changed
    if source.mtime_ns and source.mtime_ns == _mtime_ns(path):
        return pairs
    return [*pairs, (f"sha256 of {path}", source.sha256, hash_file(path).sha256)]


def _publish(job: DatasetJob, encoder: BlockEncoder, manifests: list[Manifest]) -> None:
    """Gives the finished files their names, the manifests last; see the table at the top of this file."""
    beside(manifest_path(job.output), ".partial").touch()
    for prefix in job.outputs:
        manifest_path(prefix).unlink(missing_ok=True)
        sync_folder(prefix.parent)
    for writer in encoder.writers:
        writer.publish()
    partial = beside(job.rejects_path, ".partial")
    if manifests[0].rejected or job.rejects:
        os.replace(partial, job.rejects_path)
    else:  # a list left by an earlier dataset at PREFIX would be taken for this one's
        partial.unlink()
        job.rejects_path.unlink(missing_ok=True)
    sync_folder(job.output.parent)
    for prefix, manifest in reversed(list(zip(job.outputs, manifests, strict=True))):
        write_manifest(prefix, manifest)
