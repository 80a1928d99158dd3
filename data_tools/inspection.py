"""What a dataset holds, for people: its manifest as a table, and an open pair for whoever reads its documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.errors import DataError
from data_tools.manifest import Manifest, check_files, read_manifest
from data_tools.quantities import format_count, format_exact

if TYPE_CHECKING:
    from data_tools.dataset import StoredDataset
    from data_tools.indexed import IndexedReader


@dataclass(frozen=True)
class Dataset:
    """An open dataset whose files agree with its manifest."""

    prefix: Path
    manifest: Manifest
    documents: IndexedReader


def open_dataset(prefix: Path) -> Dataset:
    """Opens a finished dataset.

    Raises:
        DataError: If it is in shards, not finished, or its files do not agree with its manifest.
    """
    from data_tools.indexed import IndexedReader

    if (prefix / "plan.json").is_file():
        raise DataError(
            f"{prefix}: is a folder of shards, and one pair is wanted; write it as one with: "
            f"python -m data_tools merge {prefix} --output {prefix}-whole"
        )
    manifest = read_manifest(prefix)
    check_files(prefix, manifest)
    return Dataset(prefix=prefix, manifest=manifest, documents=IndexedReader(prefix))


def summary(manifest: Manifest) -> list[tuple[str, str]]:
    """The manifest as rows of a table: name, value."""
    return _rows([manifest], manifest.data_id)


def summary_of_all(dataset: StoredDataset) -> list[tuple[str, str]]:
    """The same for a dataset of one pair or of shards."""
    shards = dataset.shards[1:] and [("shards", format_exact(len(dataset.shards)))]
    return [*shards, *_rows([shard.manifest for shard in dataset.shards], dataset.data_id)]


def _rows(manifests: Sequence[Manifest], data_id: str) -> list[tuple[str, str]]:
    first = manifests[0]
    documents = sum(manifest.documents for manifest in manifests)
    tokens = sum(manifest.tokens for manifest in manifests)
    left_out = sum(manifest.left_out for manifest in manifests)
    trained = sum(manifest.chat.trained_tokens for manifest in manifests if manifest.chat)
    return [
        ("documents", format_exact(documents)),
        ("tokens", format_exact(tokens) + (f" ({format_count(tokens)})" if tokens >= 1000 else "")),
        ("tokens per document", f"{tokens / max(1, documents):,.1f} on average"),
        *([("trained tokens", f"{trained:,} ({100 * trained / max(1, tokens):.1f} %)")] if first.chat else []),
        ("rejected lines", _rejected(manifests)),
        *([("left out by --where", f"{left_out:,} ({first.where})")] if first.where else []),
        ("token type", f"{first.dtype}, largest id {max(manifest.max_token_id for manifest in manifests):,}"),
        ("end of document", f"id {first.eod_id} appended" if first.append_eod else "not appended"),
        ("tokenizer", f"{first.tokenizer.name}, {first.tokenizer.vocab_size:,} ids"),
        ("encoded by", _engine(manifests)),
        ("size of .bin", f"{format_exact(sum(manifest.bin_bytes for manifest in manifests))} bytes"),
        ("data id", data_id[:16]),
    ]


def _rejected(manifests: Sequence[Manifest]) -> str:
    reasons: dict[str, int] = {}
    for manifest in manifests:
        for reason, count in manifest.rejected_by_reason.items():
            reasons[reason] = reasons.get(reason, 0) + count
    said = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
    return format_exact(sum(reasons.values())) + (f" ({said})" if said else "")


def _engine(manifests: Sequence[Manifest]) -> str:
    engines = [manifest.engine for manifest in manifests]
    named = ", ".join(sorted({f"{engine.name} {engine.version}" if engine else "not recorded" for engine in engines}))
    compared = sum(engine.compared for engine in engines if engine)
    return named + (f", {compared:,} documents compared with tokenizers" if compared else "")
