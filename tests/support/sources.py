"""Tokenised sources of a few documents, and plans that read them.

    write_source(tmp_path / "a", [[1, 2, 0], [3, 0]])     the pair, written by Megatron-Core, and its manifest
    plan_reading({"a": (tmp_path / "a", 8)}, ...)          a plan that takes 8 samples of it

A source may lie about itself only through `describe_source`, which writes the manifest alone, and
`write_sparse_source`, whose tokens are nowhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from numpy.typing import NDArray

from data_tools.dataset import read_dataset
from data_tools.indexed import write_index
from data_tools.manifest import BLOCK_DOCUMENTS, Manifest, TokenizerRecord, write_manifest
from megatron_ext.plan.stage_plan import PhasePlan, PhaseSource, StagePlan
from megatron_ext.training.file_list import TOKENIZER_FILES
from tests.support.plans import make_plan, make_source

EOD = 0


def write_source(
    prefix: Path, documents: Sequence[Sequence[int]], *, block_documents: int = BLOCK_DOCUMENTS, dtype: str = "uint16"
) -> Manifest:
    """Writes PREFIX.bin, PREFIX.idx and PREFIX.manifest.json; each document is one sequence."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=getattr(np, dtype))
    for document in documents:
        builder.add_document(np.array(document, dtype=np.int64), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return describe_source(prefix, documents, block_documents=block_documents, dtype=dtype)


def describe_source(
    prefix: Path, documents: Sequence[Sequence[int]], *, block_documents: int = BLOCK_DOCUMENTS, dtype: str = "uint16"
) -> Manifest:
    """Writes only the manifest of a pair that lies at PREFIX."""
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    hashes = {
        f"{suffix}_sha256": hashlib.sha256(Path(f"{prefix}.{suffix}").read_bytes()).hexdigest()
        for suffix in ("bin", "idx")
    }
    largest = max((token for document in documents for token in document), default=0)
    return _describe(prefix, lengths, hashes, max_token_id=largest, block_documents=block_documents, dtype=dtype)


def write_sparse_source(prefix: Path, lengths: NDArray[np.int32]) -> Manifest:
    """Writes a pair whose index is true and whose `.bin` is a hole: every token is 0, no disk is taken by them.

    Args:
        prefix: PREFIX of the pair.
        lengths: `[documents]` tokens of each.
    """
    _, idx_sha256 = write_index(Path(f"{prefix}.idx"), lengths, dtype="uint16")
    with Path(f"{prefix}.bin").open("wb") as file:
        file.truncate(2 * int(lengths.sum(dtype=np.int64)))
    hashes = {"bin_sha256": hashlib.sha256(prefix.name.encode()).hexdigest(), "idx_sha256": idx_sha256}
    return _describe(prefix, lengths, hashes, max_token_id=0)


def _describe(
    prefix: Path,
    lengths: NDArray[np.int32],
    hashes: Mapping[str, str],
    *,
    max_token_id: int,
    block_documents: int = BLOCK_DOCUMENTS,
    dtype: str = "uint16",
) -> Manifest:
    manifest = Manifest(
        documents=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        rejected=0,
        rejected_by_reason={},
        bin_bytes=Path(f"{prefix}.bin").stat().st_size,
        idx_bytes=Path(f"{prefix}.idx").stat().st_size,
        **hashes,
        dtype=dtype,
        max_token_id=max_token_id,
        block_documents=block_documents,
        tokens_per_block=[
            int(lengths[first : first + block_documents].sum(dtype=np.int64))
            for first in range(0, len(lengths), block_documents)
        ],
        append_eod=True,
        eod_id=EOD,
        tokenizer=TokenizerRecord(fingerprint="f" * 64, vocab_size=120, name="pencil"),
        sources=[],
        command="test",
        versions={},
        created="2026-01-01T00:00:00Z",
    )
    write_manifest(prefix, manifest)
    return manifest


def write_tokenizer(folder: Path) -> Path:
    """Writes the files that a checkpoint copies; nobody can read text with them."""
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        (folder / name).write_text("{}")
    return folder


def plan_reading(
    sources: Mapping[str, tuple[Path, int]],
    *,
    global_batch_size: int,
    micro_batch_size: int = 1,
    tokenizer: Path = Path("data/tokenizer"),
    phases: Sequence[Mapping[str, int | tuple[int, str]]] = (),
    **changes: Any,
) -> StagePlan:
    """Builds a plan over written sources.

    Args:
        sources: Prefix and planned samples by name; the samples sum to whole steps.
        global_batch_size: Samples of a step.
        micro_batch_size: Samples of a microbatch.
        phases: Samples of each source in each phase, or samples and cursor; they sum to the planned ones.
        tokenizer: Folder that checkpoints copy the tokenizer from; nothing else reads it.
        **changes: Fields of `StagePlan`; `batch`, `data` and `layout` merge as in `make_plan`.
    """
    total = sum(samples for _, samples in sources.values())
    assert total % global_batch_size == 0, f"{total} samples are no whole steps of {global_batch_size}"
    batch = {
        "sequence_length": 4,
        "global_batch_size": global_batch_size,
        "micro_batch_size": micro_batch_size,
        "total_steps": total // global_batch_size,
    } | changes.pop("batch", {})
    planned = []
    for name, (prefix, samples) in sources.items():
        dataset = read_dataset(prefix)
        planned.append(
            make_source(
                source=name,
                prefix=str(prefix),
                validation_prefix=str(prefix),
                data_id=dataset.data_id,
                validation_data_id=dataset.data_id,
                documents=dataset.documents,
                tokens=dataset.tokens,
                share=samples / total,
                samples=samples,
                epochs=samples * batch["sequence_length"] / max(dataset.tokens, 1),
                max_epochs=1e9,
            )
        )
    data = {"sources": tuple(planned), "tokenizer": str(tokenizer), "phases": tuple(map(_phase, phases))}
    data |= changes.pop("data", {})
    return make_plan(batch=batch, data=data, **changes)


def _phase(given: Mapping[str, int | tuple[int, str]]) -> PhasePlan:
    pairs = {name: value if isinstance(value, tuple) else (value, "continue") for name, value in given.items()}
    total = sum(samples for samples, _ in pairs.values())
    sources = tuple(
        PhaseSource(source=name, share=samples / total, samples=samples, max_epochs=1e9, cursor=cursor)
        for name, (samples, cursor) in pairs.items()
    )
    return PhasePlan(samples=total, sources=sources)
