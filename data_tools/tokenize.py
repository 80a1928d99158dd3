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
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_tools.atomic_files import beside, only_writer, sync_folder
from data_tools.errors import DataError, UsageError
from data_tools.finished import files_of, finished_before
from data_tools.inputs import find_inputs
from data_tools.job import DatasetJob
from data_tools.job import TokenizeJob as TokenizeJob
from data_tools.manifest import Manifest, manifest_path, read_manifest, write_manifest
from data_tools.parts import Part
from data_tools.progress import Progress

if TYPE_CHECKING:
    from data_tools.encode import BlockEncoder
    from data_tools.tokenizer import Tokenizer


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
    return write_dataset(job, progress, load=load)


def write_dataset(
    job: DatasetJob,
    progress: Progress,
    *,
    load: Callable[[], Tokenizer] | None = None,
) -> TokenizeResult:
    """Makes a dataset of the inputs, unless it is there already.

    Args:
        job: What to do.
        progress: Is told of every byte of input.
        load: Gives the job's tokenizer, if something is to be written; None: it is loaded.

    Raises:
        UsageError: If the command contradicts itself.
        SetupError: If a library that was chosen cannot do it.
        DataError: If an input or the tokenizer cannot be read, a record has no document and `on_error` is
            `fail`, no document is left, two ways of encoding disagree, PREFIX.validation holds what this job
            does not hold out, or PREFIX holds something else and `overwrite` is not given.
    """
    job.check()
    parts = [job.part] if job.part else [Part(file) for file in find_inputs(job.inputs).files]
    _refuse_to_write_an_input(job, parts)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(job.output):
        if not job.overwrite and (done := finished_before(job, parts)):
            return TokenizeResult(done[0], was_done=True, held_out=done[1] if len(done) > 1 else None)
        _refuse_old_held_out(job)
        tokenizer = (load or job.load_tokenizer)()
        with job.load_encoder()(tokenizer, job, total_bytes=sum(part.size for part in parts)) as encoder:
            sources = [encoder.read(part, number, progress) for number, part in enumerate(parts)]
            manifests = encoder.finish(sources)
        _publish(job, encoder, manifests)
        return TokenizeResult(manifests[0], was_done=False, held_out=manifests[1] if len(manifests) > 1 else None)


def _refuse_to_write_an_input(job: DatasetJob, parts: list[Part]) -> None:
    inputs = {part.file.path.resolve() for part in parts}
    written = [path for prefix in job.outputs for path in (*files_of(job, prefix), manifest_path(prefix))]
    for path in (*written, job.rejects_path):
        if path.resolve() in inputs:
            raise UsageError(f"{path}: is an input and would be written too; choose another --output or --rejects")


def _refuse_old_held_out(job: DatasetJob) -> None:
    """Documents held out by an earlier job would be read in training too, and still pass for held out."""
    if job.hold_out_percent or not manifest_path(job.validation_output).exists():
        return
    if (there := read_manifest(job.validation_output)).split == "validation":
        raise DataError(
            f"{job.validation_output}: holds documents that an earlier job held out ({there.hold_out_percent:g}%); "
            f"give --hold-out {there.hold_out_percent:g}%, or remove it"
        )


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
