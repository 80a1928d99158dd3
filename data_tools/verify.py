"""Every claim of a manifest, checked against its files.

| claim                              | checked |
|------------------------------------|---------|
| sizes, index header                | always |
| lengths, offsets, documents of the index; tokens, tokens per block | always |
| sha256 of each file                | deep |
| largest id, below the vocabulary   | deep |
| every document passes the filter that `where` names | deep |
| an end of document at the end of each document, and nowhere else unless text may spell it | deep |
| masks: as many as documents, runs ascending within them, their tokens as many as said | deep |
| origins: as many as documents, of sources that the manifest names, of its split; tokens by domain | deep |

The deep check reads the files once or twice, a few megabytes at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.atomic_files import beside
from data_tools.dataset import finished_shards, read_plan, shard_prefix
from data_tools.encode import tokens_per_block
from data_tools.errors import DataError
from data_tools.index_header import HEADER_BYTES, ITEM_BYTES, read_index_header
from data_tools.loss_mask import read_masks
from data_tools.manifest import Manifest, check_files, read_manifest
from data_tools.origin import DOMAINS, ORIGIN, by_domain, tokens_of_domains
from data_tools.selection import Where
from data_tools.split import held_out_below

_REMEDY = "the files were changed after they were written; tokenize again with --overwrite"
_TOKENS_AT_ONCE = 1 << 22


def prefixes_of(output: Path) -> list[Path]:
    """PREFIX itself, or those of all shards where it is the folder of a plan; DataError until all are finished."""
    if not (output / "plan.json").exists():
        return [output]
    return [shard_prefix(output, number) for number in finished_shards(output, read_plan(output))]


def verify(prefix: Path, *, deep: bool) -> Manifest:
    """Checks one dataset.

    Args:
        prefix: PREFIX of its files.
        deep: Whether every byte is read.

    Returns:
        The manifest, which is right.

    Raises:
        DataError: At the first claim that is wrong, with both numbers.
    """
    manifest = read_manifest(prefix)
    check_files(prefix, manifest)
    lengths = _check_index(prefix, manifest)
    if deep:
        _check_hashes(prefix, manifest)
        _check_tokens(prefix, manifest, lengths)
        _check_filter(prefix, manifest, lengths)
        _check_origins(prefix, manifest, lengths)
        _check_masks(prefix, manifest, lengths)
    return manifest


def _expect(path: Path, name: str, found: object, said: object) -> None:
    if found != said:
        raise DataError(f"{path}: {name}: found {found}, its manifest says {said}; {_REMEDY}")


def _check_index(prefix: Path, manifest: Manifest) -> npt.NDArray[np.int64]:
    """The tokens of each document, [documents]."""
    path = beside(prefix, ".idx")
    sequences = read_index_header(path).sequences
    raw = np.memmap(path, np.uint8, mode="r")
    lengths = np.frombuffer(raw, "<i4", sequences, HEADER_BYTES)
    pointers = np.frombuffer(raw, "<i8", sequences, HEADER_BYTES + 4 * sequences)
    documents = np.frombuffer(raw, "<i8", manifest.documents + 1, HEADER_BYTES + 12 * sequences)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    if not np.array_equal(pointers, ends[:-1] * ITEM_BYTES[manifest.dtype]):
        raise DataError(f"{path}: an offset is not the sum of the lengths before it; {_REMEDY}")
    if documents[0] != 0 or documents[-1] != sequences or (np.diff(documents) < 0).any():
        raise DataError(f"{path}: the documents do not divide the sequences; {_REMEDY}")
    _expect(path, "tokens", int(ends[-1]), manifest.tokens)
    of_documents = np.diff(ends[documents])
    blocks = tokens_per_block(of_documents, block_documents=manifest.block_documents)
    _expect(path, "tokens_per_block", blocks, manifest.tokens_per_block)
    return of_documents


def _check_hashes(prefix: Path, manifest: Manifest) -> None:
    files = [(".bin", manifest.bin_sha256), (".idx", manifest.idx_sha256)]
    files += [(".origin", manifest.origin_sha256)] if manifest.origin_sha256 else []
    files += [(".mask", manifest.chat.mask_sha256)] if manifest.chat else []
    for suffix, said in files:
        with beside(prefix, suffix).open("rb") as file:
            _expect(beside(prefix, suffix), "sha256", hashlib.file_digest(file, "sha256").hexdigest(), said)


def _check_tokens(prefix: Path, manifest: Manifest, lengths: npt.NDArray[np.int64]) -> None:
    path = beside(prefix, ".bin")
    last = np.cumsum(lengths)[lengths > 0] - 1  # position of the last token of each document that has one
    largest = ends = start = eods = 0
    for ids in _pieces(path, manifest.dtype):
        largest = max(largest, int(ids.max()))
        eods += int((ids == manifest.eod_id).sum())
        inside = last[np.searchsorted(last, start) : np.searchsorted(last, start + len(ids))] - start
        ends += int((ids[inside] == manifest.eod_id).sum())
        start += len(ids)
    _expect(path, "max_token_id", largest, manifest.max_token_id)
    if largest >= manifest.tokenizer.vocab_size:
        raise DataError(f"{path}: id {largest} is not below vocab_size {manifest.tokenizer.vocab_size}; {_REMEDY}")
    if not manifest.append_eod or manifest.chat:
        return
    if ends != len(last):
        raise DataError(f"{path}: {len(last) - ends:,} of {len(last):,} documents do not end with id {manifest.eod_id}")
    if manifest.special_tokens != "parse" and eods != ends:
        raise DataError(f"{path}: id {manifest.eod_id} stands {eods - ends:,} times inside a document; {_REMEDY}")


def _check_filter(prefix: Path, manifest: Manifest, lengths: npt.NDArray[np.int64]) -> None:
    if not manifest.where or manifest.origin_bytes is None:
        return
    answers = np.fromfile(beside(prefix, ".origin"), ORIGIN)["answer_tokens"]
    taken = Where.parse(manifest.where).select(text_tokens=lengths - manifest.append_eod, answer_tokens=answers).taken
    if not taken.all():
        raise DataError(
            f"{prefix}: {int((~taken).sum()):,} of {len(taken):,} documents do not pass where = {manifest.where!r}, "
            f"document {int(np.argmin(taken))} the first; {_REMEDY}"
        )


def _check_masks(prefix: Path, manifest: Manifest, lengths: npt.NDArray[np.int64]) -> None:
    if not manifest.chat:
        return
    path = beside(prefix, ".mask")
    masks = read_masks(prefix)
    _expect(path, "conversations", len(masks), manifest.documents)
    counts = np.diff(masks.first_run)
    if masks.first_run[0] != 0 or masks.first_run[-1] != len(masks.runs) or (counts < 0).any():
        raise DataError(f"{path}: the conversations do not divide the runs; {_REMEDY}")
    owner = np.repeat(np.arange(len(masks)), counts)
    start, stop = masks.runs[:, 0], masks.runs[:, 1]
    touches = (owner[1:] == owner[:-1]) & (start[1:] <= stop[:-1])
    wrong = (start < 0) | (start >= stop) | (stop > lengths[owner]) | np.append(touches, False)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{path}: run {start[at]}..{stop[at]} of conversation {owner[at]:,} is empty, not behind the last, or not "
            f"within its {lengths[owner[at]]:,} tokens; {_REMEDY}"
        )
    thinking = masks.thinking
    wrong = (thinking[:, 0] < 0) | (thinking[:, 0] > thinking[:, 1]) | (thinking[:, 1] > lengths)
    if wrong.any():
        raise DataError(f"{path}: thinking of conversation {int(np.argmax(wrong)):,} is not within it; {_REMEDY}")
    _expect(path, "trained_tokens", masks.trained_tokens, manifest.chat.trained_tokens)


def _check_origins(prefix: Path, manifest: Manifest, lengths: npt.NDArray[np.int64]) -> None:
    if manifest.origin_bytes is None:
        return
    path = beside(prefix, ".origin")
    origins = np.fromfile(path, ORIGIN)
    _expect(path, "documents", len(origins), manifest.documents)
    largest = int(origins["source"].max(initial=0))
    if largest >= len(manifest.sources):
        raise DataError(f"{path}: a document is of source {largest}, there are {len(manifest.sources)}; {_REMEDY}")
    tokens = tokens_of_domains(origins, lengths)
    if len(tokens) > len(DOMAINS):
        raise DataError(f"{path}: a document is of domain {len(tokens) - 1}, there are {len(DOMAINS)}; {_REMEDY}")
    if manifest.tokens_by_domain is not None:
        _expect(path, "tokens_by_domain", by_domain(tokens), manifest.tokens_by_domain)
    if manifest.hold_out_percent:
        is_held_out = origins["id_hash"] < np.uint64(held_out_below(manifest.hold_out_percent))
        wrong = is_held_out != (manifest.split == "validation")
        if wrong.any():
            raise DataError(f"{path}: document {int(np.argmax(wrong)):,} is not of split {manifest.split}; {_REMEDY}")


def _pieces(path: Path, dtype: str) -> Iterator[npt.NDArray[Any]]:
    with path.open("rb") as file:
        while len(ids := np.fromfile(file, f"<{np.dtype(dtype).str[1:]}", _TOKENS_AT_ONCE)):
            yield ids
