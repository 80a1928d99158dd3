"""Which documents are held out, decided by their id alone.

The split of a document depends on nothing but its id: not on the order of files, the blend, the
sequence length or a seed. So a document held out once is held out of every blend made later.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import Literal

Split = Literal["train", "validation"]

VALIDATION_PERCENT = 2
"""Part of the documents that is held out, in percent."""

_BUCKETS = 2**64


def split_of(document_id: str) -> Split:
    """The split that a document belongs to, for ever.

    The first 8 bytes of sha256 of the id, read as a big-endian number, are uniform on [0, 2^64);
    the lowest `VALIDATION_PERCENT` percent of that range are held out.

    Args:
        document_id: The `id` of the document; not empty.

    Raises:
        ValueError: If the id is empty: all documents without an id would share one split.

    >>> split_of("doc-0"), split_of("doc-59")
    ('train', 'validation')
    """
    if not document_id:
        raise ValueError("a document without an id cannot be split; give every row an id")
    return "validation" if id_hash(document_id) < held_out_below(VALIDATION_PERCENT) else "train"


def id_hash(document_id: str) -> int:
    """The number, uniform on [0, 2^64), on which the split of a document hangs."""
    return int.from_bytes(hashlib.sha256(document_id.encode("utf-8")).digest()[:8], "big")


def held_out_below(percent: float) -> int:
    """Documents whose `id_hash` is below this number are held out.

    Args:
        percent: Part of the documents that is held out, from 0 to below 100.

    >>> held_out_below(50) == 2**63
    True
    """
    return math.ceil(Fraction(str(percent)) * _BUCKETS / 100)
