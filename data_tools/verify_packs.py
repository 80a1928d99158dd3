"""Every claim of `OUT.packs.json`, checked against its files and against the dataset.

| claim                                                                             | checked |
|-----------------------------------------------------------------------------------|---------|
| the dataset is the one that was packed                                            | always  |
| sizes; the numbers of packs, pieces and tokens                                    | always  |
| pieces lie within their documents, none twice; padded, those of a pack fit its length | always |
| trained tokens in packs, pieces without any                                       | always  |
| sha256 of the index and of the file for another trainer                           | deep    |

The dataset's own claims are checked by `verify` of its prefix.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_tools.atomic_files import beside
from data_tools.errors import DataError
from data_tools.inspection import Dataset, open_dataset
from data_tools.loss_mask import read_masks
from data_tools.pack_export import EXPORTS
from data_tools.pack_index import PackManifest, packs_path, read_pack_manifest, read_packs, trained_tokens
from data_tools.packing import Ints, Pieces
from data_tools.readers import hash_file

_REMEDY = "pack again with --overwrite"


def verify_packs(out: Path, *, deep: bool) -> PackManifest:
    """Checks the packs at OUT.

    Args:
        out: OUT of their files.
        deep: Whether the files are read whole.

    Returns:
        The manifest, which is right.

    Raises:
        DataError: At the first claim that is wrong, with both numbers.
    """
    manifest = read_pack_manifest(out)
    dataset = open_dataset(out.parent / manifest.data)
    _expect(out, "data_id of the dataset", dataset.manifest.data_id, manifest.data_id)
    _check_files(out, manifest, deep=deep)
    first_piece, pieces = read_packs(out)
    _expect(out, "packs", len(first_piece) - 1, manifest.packs)
    _expect(out, "pieces", len(pieces), manifest.pieces)
    if first_piece[0] != 0 or first_piece[-1] != len(pieces) or (np.diff(first_piece) < 1).any():
        raise DataError(f"{packs_path(out)}: the packs do not divide the pieces; {_REMEDY}")
    _check_pieces(out, pieces, dataset.documents.lengths)
    _check_room(out, manifest, first_piece, pieces)
    _expect(out, "packed_tokens", int(pieces.lengths.sum()), manifest.packed_tokens)
    _check_trained(out, manifest, dataset, pieces)
    return manifest


def _expect(out: Path, name: str, found: object, said: object) -> None:
    if found != said:
        raise DataError(f"{packs_path(out)}: {name}: found {found}, its manifest says {said}; {_REMEDY}")


def _check_files(out: Path, manifest: PackManifest, *, deep: bool) -> None:
    files = [(packs_path(out), manifest.packs_bytes, manifest.packs_sha256)]
    if manifest.export:
        path = beside(out, EXPORTS[manifest.export.form].suffix)
        files.append((path, manifest.export.bytes, manifest.export.sha256))
    for path, size, sha256 in files:
        if not path.exists() or path.stat().st_size != size or (deep and hash_file(path).sha256 != sha256):
            raise DataError(f"{path}: is not the file that its manifest describes; {_REMEDY}")


def _check_pieces(out: Path, pieces: Pieces, lengths: Ints) -> None:
    of = pieces.conversation
    if len(of) and not (of.min() >= 0 and of.max() < len(lengths)):
        raise DataError(f"{packs_path(out)}: a piece is of none of the {len(lengths):,} documents; {_REMEDY}")
    ascends = (
        (pieces.start >= 0)
        & (pieces.start <= pieces.skip_start)
        & (pieces.skip_start <= pieces.skip_stop)
        & (pieces.skip_stop <= pieces.stop)
        & (pieces.stop <= lengths[of])
    )
    if not ascends.all():
        at = int(np.argmin(ascends))
        raise DataError(
            f"{packs_path(out)}: piece {at:,}, tokens {pieces.start[at]}..{pieces.stop[at]} of document {of[at]:,}, "
            f"is not within its {lengths[of[at]]:,} tokens; {_REMEDY}"
        )
    order = np.lexsort((pieces.start, of))
    overlaps = (of[order][1:] == of[order][:-1]) & (pieces.start[order][1:] < pieces.stop[order][:-1])
    if overlaps.any():
        document = int(of[order][1:][np.argmax(overlaps)])
        raise DataError(f"{packs_path(out)}: tokens of document {document:,} are in two pieces; {_REMEDY}")


def _check_room(out: Path, manifest: PackManifest, first_piece: Ints, pieces: Pieces) -> None:
    padded = -(-pieces.lengths // manifest.pad_multiple) * manifest.pad_multiple
    filled = np.add.reduceat(padded, first_piece[:-1]) if len(padded) else padded
    if (filled > manifest.length).any():
        at = int(np.argmax(filled))
        raise DataError(
            f"{packs_path(out)}: pack {at:,} takes {filled[at]:,} positions of {manifest.length:,}; {_REMEDY}"
        )


def _check_trained(out: Path, manifest: PackManifest, dataset: Dataset, pieces: Pieces) -> None:
    trained = trained_tokens(read_masks(dataset.prefix) if dataset.manifest.chat else None, pieces)
    _expect(out, "packed_trained_tokens", int(trained.sum()), manifest.packed_trained_tokens)
    _expect(out, "untrained_pieces", int((trained == 0).sum()), manifest.untrained_pieces)
