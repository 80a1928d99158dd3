"""Packs of a finished dataset: `OUT.packs`, on request a file for another trainer, and last `OUT.packs.json`."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from data_tools.atomic_files import beside, only_writer, sync_folder, write_atomically
from data_tools.dataset import read_dataset
from data_tools.document_view import place_of
from data_tools.errors import DataError, UsageError
from data_tools.inspection import Dataset, open_dataset
from data_tools.loss_mask import LossMasks, read_masks
from data_tools.pack_export import EXPORTS
from data_tools.pack_index import (
    ExportRecord,
    PackManifest,
    index_bytes,
    pack_manifest_path,
    packs_path,
    read_pack_manifest,
    trained_tokens,
)
from data_tools.packing import Algorithm, Overlong, OverlongError, Packing, pack
from data_tools.readers import hash_file

PACK_VERSION = "1"
"""Raised when the same lengths would give other packs; recorded in every manifest."""


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """What `pack` was asked to do.

    Attributes:
        data: PREFIX of a dataset.
        output: OUT of the files.
        length: Capacity of a pack, in tokens.
        algorithm: See `packing.py`.
        overlong: See `packing.py`.
        pad_multiple: See `packing.py`.
        seed: Of the orders.
        form: `index`, or a file for another trainer besides.
        overwrite: Whether whatever stands at OUT may be replaced.
        command: The command line, for the manifest.
    """

    data: Path
    output: Path
    length: int
    algorithm: Algorithm = "bfd"
    overlong: Overlong = "error"
    pad_multiple: int = 1
    seed: int = 0
    form: Literal["index", "megatron-jsonl", "bridge-parquet"] = "index"
    overwrite: bool = False
    command: str = ""

    @property
    def asked(self) -> dict[str, Any]:
        """What decides the packs; the same names as in `PackManifest`."""
        names = ("length", "pad_multiple", "algorithm", "overlong", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class PackResult:
    """The finished packs, and whether they had been finished before."""

    manifest: PackManifest
    was_done: bool


def pack_dataset(job: PackJob) -> PackResult:
    """Packs a dataset, unless that is done already.

    Raises:
        UsageError: If the command contradicts itself.
        DataError: If the dataset is not finished or damaged, a conversation is too long and `overlong` is
            `error`, or OUT holds something else and `overwrite` is not given.
    """
    if job.algorithm == "concat" and job.overlong not in ("error", "split"):
        raise UsageError(f"--overlong: {job.overlong}: --algo concat cuts at pack ends and leaves nothing out")
    dataset = open_dataset(job.data)
    sources = {Path(source.path).resolve() for source in dataset.manifest.sources}
    if job.form != "index" and export_path(job).resolve() in sources:
        raise UsageError(f"{export_path(job)}: is what {job.data} was made of; choose another --output")
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(packs_path(job.output)):
        if not job.overwrite and (done := _finished_before(job, dataset)):
            return PackResult(done, was_done=True)
        masks = read_masks(job.data) if dataset.manifest.chat else None
        thinking = masks.thinking if masks is not None else None
        try:
            packing = pack(dataset.documents.lengths, thinking=thinking, **job.asked)
        except OverlongError as error:
            longest = place_of(read_dataset(str(job.data)), error.longest)
            raise DataError(f"{error}.\n  The longest is {longest}.") from None
        if not packing.packs:
            raise DataError(
                f"{job.data}: no conversation is left to pack; raise --length, or choose another --overlong"
            )
        return PackResult(_write(job, dataset, masks, packing), was_done=False)


def _write(job: PackJob, dataset: Dataset, masks: LossMasks | None, packing: Packing) -> PackManifest:
    export = _export(job, dataset, masks, packing)
    content = index_bytes(packing)
    trained = trained_tokens(masks, packing.pieces)
    changes = {name: asdict(getattr(packing, name)) for name in ("dropped", "truncated", "trimmed", "split")}
    manifest = PackManifest.model_validate(
        {
            **job.asked,
            **changes,
            "data": os.path.relpath(job.data, job.output.parent),
            "data_id": dataset.manifest.data_id,
            "packs": packing.packs,
            "pieces": len(packing.pieces),
            "conversations": packing.conversations,
            "tokens": packing.tokens,
            "packed_tokens": packing.packed_tokens,
            "padding": packing.padding,
            "trained_tokens": dataset.manifest.chat.trained_tokens if dataset.manifest.chat else packing.tokens,
            "packed_trained_tokens": int(trained.sum()),
            "untrained_pieces": int((trained == 0).sum()),
            "packs_bytes": len(content),
            "packs_sha256": hashlib.sha256(content).hexdigest(),
            "export": export,
            "command": job.command,
            "versions": {"pack": PACK_VERSION, "python": platform.python_version(), "numpy": np.__version__},
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )
    beside(pack_manifest_path(job.output), ".partial").touch()  # tells a kill from here on from files of somebody else
    pack_manifest_path(job.output).unlink(missing_ok=True)
    sync_folder(job.output.parent)
    write_atomically(packs_path(job.output), content)
    if export is not None:
        path = export_path(job)
        os.replace(beside(path, ".partial"), path)
    record = orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    write_atomically(pack_manifest_path(job.output), record)
    return manifest


def export_path(job: PackJob) -> Path:
    """Where the file for another trainer goes."""
    return beside(job.output, EXPORTS[job.form].suffix)


def _export(job: PackJob, dataset: Dataset, masks: LossMasks | None, packing: Packing) -> ExportRecord | None:
    if job.form == "index":
        return None
    partial = beside(export_path(job), ".partial")
    try:
        EXPORTS[job.form].write(partial, dataset, masks, packing)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    seen = hash_file(partial)
    return ExportRecord(form=job.form, bytes=seen.bytes, sha256=seen.sha256)


def _finished_before(job: PackJob, dataset: Dataset) -> PackManifest | None:
    """The manifest at OUT if it is of this very job; None if nothing finished stands there."""
    path = pack_manifest_path(job.output)
    if not path.exists():
        written = [packs_path(job.output), *([export_path(job)] if job.form != "index" else [])]
        there = [str(file) for file in written if file.exists()]
        if there and not beside(path, ".partial").exists():
            raise DataError(
                f"{job.output}: {' and '.join(there)} without a manifest; give --overwrite, or another --output"
            )
        return None
    manifest = read_pack_manifest(job.output)
    pairs = [(name, getattr(manifest, name), value) for name, value in job.asked.items()]
    pairs.append(("data_id", manifest.data_id, dataset.manifest.data_id))
    pairs.append(("--out", manifest.export.form if manifest.export else "index", job.form))
    pairs.append(("version of pack", manifest.versions.get("pack"), PACK_VERSION))
    differences = [f"{name}: it has {there}, asked for {asked}" for name, there, asked in pairs if there != asked]
    if differences:
        raise DataError(
            f"{job.output}: holds other packs; give --overwrite, or another --output\n  " + "\n  ".join(differences)
        )
    files = [(packs_path(job.output), manifest.packs_bytes, manifest.packs_sha256)]
    files += [(export_path(job), manifest.export.bytes, manifest.export.sha256)] if manifest.export else []
    for path, size, sha256 in files:
        seen = hash_file(path)
        if (seen.bytes, seen.sha256) != (size, sha256):
            raise DataError(f"{path}: is not the file that its manifest describes; give --overwrite")
    return manifest
