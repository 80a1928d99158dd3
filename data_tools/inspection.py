"""What a dataset holds, for people: numbers, a histogram of document lengths, a document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.manifest import Manifest, check_files, read_manifest
from data_tools.quantities import format_count, format_exact
from data_tools.tokenizer import Tokenizer

_BAR_CHARACTERS = 40


@dataclass(frozen=True)
class Dataset:
    """An open dataset whose files agree with its manifest."""

    prefix: Path
    manifest: Manifest
    documents: IndexedReader


def open_dataset(prefix: Path) -> Dataset:
    """Opens a finished dataset.

    Raises:
        DataError: If it is not finished, or its files do not agree with its manifest.
    """
    manifest = read_manifest(prefix)
    check_files(prefix, manifest)
    return Dataset(prefix=prefix, manifest=manifest, documents=IndexedReader(prefix))


def summary(manifest: Manifest) -> list[tuple[str, str]]:
    """The manifest as rows of a table: name, value."""
    mean = manifest.tokens / manifest.documents if manifest.documents else 0.0
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejected_by_reason.items())
    return [
        ("documents", format_exact(manifest.documents)),
        ("tokens", f"{format_exact(manifest.tokens)} ({format_count(manifest.tokens)})"),
        ("tokens per document", f"{mean:,.1f} on average"),
        ("rejected lines", format_exact(manifest.rejected) + (f" ({reasons})" if reasons else "")),
        *([("left out by --where", f"{manifest.left_out:,} ({manifest.where})")] if manifest.where else []),
        ("token type", f"{manifest.dtype}, largest id {manifest.max_token_id:,}"),
        ("end of document", f"id {manifest.eod_id} appended" if manifest.append_eod else "not appended"),
        ("tokenizer", f"{manifest.tokenizer.name}, {manifest.tokenizer.vocab_size:,} ids"),
        ("encoded by", _engine(manifest)),
        ("size of .bin", f"{format_exact(manifest.bin_bytes)} bytes"),
        ("data id", manifest.data_id[:16]),
    ]


def _engine(manifest: Manifest) -> str:
    engine = manifest.engine
    if engine is None:
        return "not recorded"
    compared = f", {engine.compared:,} documents compared with tokenizers" if engine.compared else ""
    return f"{engine.name} {engine.version}{compared}"


def length_histogram(lengths: npt.NDArray[np.int64]) -> list[str]:
    """Documents by length, a line for each doubling.

    Args:
        lengths: [documents] tokens of each.

    >>> for line in length_histogram(np.array([1, 5, 6, 7, 9])): print(line)
    tokens         documents
           1 -        1          1  #############
           4 -        7          3  ########################################
           8 -       15          1  #############
    """
    lines = ["tokens         documents"]
    powers = np.frexp(np.maximum(lengths, 1).astype(np.float64))[1] - 1
    counts = np.bincount(powers)
    for power in np.flatnonzero(counts):
        bar = "#" * max(1, round(_BAR_CHARACTERS * int(counts[power]) / int(counts.max())))
        lines.append(f"{2**power:8,} - {2 ** (power + 1) - 1:8,} {counts[power]:10,}  {bar}")
    return lines


def document_ids(dataset: Dataset, document: int) -> list[int]:
    """The ids of one document.

    Raises:
        UsageError: If there is no such document.
    """
    if not 0 <= document < len(dataset.documents):
        raise UsageError(f"--document: {document} is not in 0..{len(dataset.documents) - 1} of {dataset.prefix}")
    return [int(number) for number in dataset.documents[document]]


def document_text(dataset: Dataset, document: int, tokenizer: Path) -> str:
    """One document as text.

    Raises:
        UsageError: If there is no such document.
        DataError: If the tokenizer is not the one that made the ids.
    """
    ids = document_ids(dataset, document)
    loaded = Tokenizer.load(tokenizer)
    made_by = dataset.manifest.tokenizer
    if loaded.fingerprint != made_by.fingerprint:
        raise DataError(
            f"{tokenizer}: fingerprint {loaded.fingerprint[:16]} is not {made_by.fingerprint[:16]}, that of "
            f'"{made_by.name}", which made {dataset.prefix}; give that folder'
        )
    return loaded.decode(ids)
