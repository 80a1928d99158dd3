"""Several datasets into one, streamed: for readers that want few files, or one machine's worth of shards.

Documents keep their order. Every part is checked in full before it is read, so a damaged one is refused.
Memory: some bytes a document, whatever the size of the tokens.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.atomic_files import beside, only_writer, sync_folder
from data_tools.bpe import Encoded
from data_tools.dataset_writer import Batch, DatasetWriter, WrittenDataset
from data_tools.encode import tokens_per_block
from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import read_masks
from data_tools.manifest import (
    EngineRecord,
    Manifest,
    SourceFile,
    check_files,
    manifest_path,
    read_manifest,
    write_manifest,
)
from data_tools.origin import ORIGIN
from data_tools.progress import Progress
from data_tools.verify import verify

_TOKENS_AT_ONCE = 1 << 22
_SAME = (
    "dtype",
    "append_eod",
    "eod_id",
    "adapter",
    "text_key",
    "where",
    "special_tokens",
    "compat",
    "split",
    "hold_out_percent",
)
_SAME_CHAT = ("version", "template_sha256", "template_tokens", "train_on", "thinking")


@dataclass(frozen=True)
class MergeResult:
    """The finished dataset, and whether it had been finished before."""

    manifest: Manifest
    was_done: bool


def merge(
    prefixes: Sequence[Path], output: Path, progress: Progress, *, overwrite: bool = False, command: str = ""
) -> MergeResult:
    """Writes the documents of some datasets as one.

    Args:
        prefixes: PREFIX of each, in the order of the documents.
        output: PREFIX of the whole.
        progress: Is told of every byte of tokens.
        overwrite: Whether whatever stands at `output` may be replaced.
        command: The command line, for the manifest.

    Raises:
        UsageError: If `output` is one of the parts.
        DataError: If a part is damaged, has no origins, does not go with the first, or something
             else stands at `output`.
    """
    if output.resolve() in [prefix.resolve() for prefix in prefixes]:
        raise UsageError(f"{output}: is one of the parts and would be written too; choose another --output")
    parts = [read_manifest(prefix) for prefix in prefixes]
    _refuse_strangers(prefixes, parts)
    with only_writer(output):
        if not overwrite and (done := _finished_before(output, parts)):
            return MergeResult(done, was_done=True)
        suffixes = (".bin", ".idx", ".origin", *([".mask"] if parts[0].chat else []))
        writer = DatasetWriter(output, dtype=parts[0].dtype, suffixes=suffixes)
        try:
            sources = 0
            for prefix, part in zip(prefixes, parts, strict=True):
                verify(prefix, deep=True)
                for batch in _pieces(prefix, part):
                    batch.origins["source"] += sources
                    writer.add(batch)
                    progress.advance(batch.documents.ids.nbytes)
                sources += len(part.sources)
            manifest = _merged(writer.finish(), parts, command=command)
        except BaseException:
            writer.discard()
            raise
        beside(manifest_path(output), ".partial").touch()
        manifest_path(output).unlink(missing_ok=True)
        sync_folder(output.parent)
        writer.publish()
        sync_folder(output.parent)
        write_manifest(output, manifest)
        return MergeResult(manifest, was_done=False)


def _refuse_strangers(prefixes: Sequence[Path], parts: Sequence[Manifest]) -> None:
    seen: dict[tuple[object, ...], Path] = {}
    for prefix, part in zip(prefixes, parts, strict=True):
        content = part.data_id, *((source.path, source.start) for source in part.sources)
        if content in seen:
            raise DataError(f"{prefix}: holds the documents of {seen[content]}, which would be there twice; drop one")
        seen[content] = prefix
        if part.origin_bytes is None:
            raise DataError(f"{prefix}: holds no .origin; make it again with this version")
        pairs = [(name, getattr(part, name), getattr(parts[0], name)) for name in _SAME]
        pairs += [
            (f"chat.{name}", getattr(part.chat, name, None), getattr(parts[0].chat, name, None)) for name in _SAME_CHAT
        ]
        pairs.append(("tokenizer fingerprint", part.tokenizer.fingerprint, parts[0].tokenizer.fingerprint))
        for name, found, first in pairs:
            if found != first:
                raise DataError(f"{prefix}: {name}: {found}, but {prefixes[0]} has {first}; merge what one job wrote")


def _finished_before(output: Path, parts: Sequence[Manifest]) -> Manifest | None:
    if not manifest_path(output).exists():
        was_interrupted = beside(manifest_path(output), ".partial").exists()
        if beside(output, ".bin").exists() and not was_interrupted:
            raise DataError(f"{output}: {output}.bin without a manifest; give --overwrite, or another --output")
        return None
    manifest = read_manifest(output)
    if manifest.parts != [part.data_id for part in parts] or manifest.sources != _sources(parts):
        raise DataError(f"{output}: holds another dataset; give --overwrite, or another --output")
    check_files(output, manifest)
    return manifest


def _sources(parts: Sequence[Manifest]) -> list[SourceFile]:
    return [source for part in parts for source in part.sources]


def _pieces(prefix: Path, part: Manifest) -> Iterator[Batch]:
    """Whole documents, about 16 MB of tokens at a time, and what is known of them."""
    reader = IndexedReader(prefix)
    lengths = reader.lengths
    ends = np.cumsum(lengths)
    tokens = np.memmap(beside(prefix, ".bin"), reader.header.dtype, mode="r") if reader.tokens else np.zeros(0, "<u2")
    origins = np.fromfile(beside(prefix, ".origin"), ORIGIN)
    masks = read_masks(prefix) if part.chat else None
    first = 0
    while first < len(lengths):
        start = int(ends[first] - lengths[first])
        after = max(first + 1, int(np.searchsorted(ends, start + _TOKENS_AT_ONCE, "right")))
        ids = np.asarray(tokens[start : int(ends[after - 1])])
        marked = None if masks is None else masks.between(first, after)
        yield Batch(Encoded(ids, lengths[first:after]), origins[first:after], marked)
        first = after


def _engine(engines: Sequence[EngineRecord | None]) -> EngineRecord | None:
    """What made the ids of all parts; None, which says that it is not recorded, where they differ."""
    first = engines[0]
    if first is None or any(engine is None or engine.name != first.name for engine in engines):
        return None
    versions = " and ".join(sorted({engine.version for engine in engines if engine}))
    compared = sum(engine.compared for engine in engines if engine)
    return replace(first, version=versions, compared=compared)


def _merged(written: WrittenDataset, parts: Sequence[Manifest], *, command: str) -> Manifest:
    pair, first = written.pair, parts[0]
    rejected: Counter[str] = Counter()
    for part in parts:
        rejected.update(part.rejected_by_reason)
    fields: dict[str, Any] = {
        "documents": len(pair.lengths),
        "tokens": int(pair.lengths.sum(dtype=np.int64)),
        "tokens_by_domain": written.tokens_by_domain,
        "rejected": rejected.total(),
        "rejected_by_reason": dict(sorted(rejected.items())),
        "left_out": sum(part.left_out for part in parts),
        "answer_rule": " | ".join(dict.fromkeys(part.answer_rule for part in parts if part.answer_rule)),
        "bin_bytes": pair.bin_bytes,
        "idx_bytes": pair.idx_bytes,
        "bin_sha256": pair.bin_sha256,
        "idx_sha256": pair.idx_sha256,
        "origin_bytes": written.origin_bytes,
        "origin_sha256": written.origin_sha256,
        "max_token_id": pair.max_token_id,
        "tokens_per_block": tokens_per_block(pair.lengths, block_documents=first.block_documents),
        "sources": _sources(parts),
        "parts": [part.data_id for part in parts],
        "engine": _engine([part.engine for part in parts]),
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if first.chat:
        names = ("trained_tokens", "mask_bytes", "mask_sha256")
        fields["chat"] = replace(first.chat, **{name: getattr(written, name) for name in names})
    return replace(first, **fields)
