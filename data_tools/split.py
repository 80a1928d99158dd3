"""Which documents are held out, decided by their id alone.

The split of a document depends on nothing but its id: not on the order of files, the blend, the
sequence length or a seed. So a document held out once is held out of every blend made later.
"""

from __future__ import annotations

import hashlib
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
    bucket = int.from_bytes(hashlib.sha256(document_id.encode("utf-8")).digest()[:8], "big")
    return "validation" if bucket * 100 < VALIDATION_PERCENT * _BUCKETS else "train"
