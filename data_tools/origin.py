"""Where each document came from: `PREFIX.origin`, beside `.bin` and `.idx`, a record of 24 bytes a document.

| offset | bytes | field |
|--------|-------|-------|
| 0      | 8     | id_hash, uint64: first 8 bytes of sha256 of the document's id, read big-endian; decides the split |
| 8      | 4     | row, uint32: of the record, from 1, counted from the start of the file (of a shard: of its part) |
| 12     | 4     | source, uint32: number of the file in the manifest's `sources`, from 0 |
| 16     | 4     | answer_tokens, int32: tokens of the part that answers, encoded alone; -1 where none is marked |
| 20     | 1     | domain, uint8: 0 code, 1 general, 2 math, 3 science |
| 21     | 1     | split, uint8: 0 train, 1 validation |
| 22     | 2     | zero |

Of a conversation that `chat` wrote, answer_tokens counts the assistant's last turn where it stands, without
the token that ends it. Little-endian, no header, in the order of the documents. Worked size: 3 documents make 72 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from data_tools.records import Conversation, Document, Domain
from data_tools.split import id_hash

ORIGIN = np.dtype(
    [
        ("id_hash", "<u8"),
        ("row", "<u4"),
        ("source", "<u4"),
        ("answer_tokens", "<i4"),
        ("domain", "u1"),
        ("split", "u1"),
        ("zero", "<u2"),
    ]
)
DOMAINS: tuple[Domain, ...] = get_args(Domain)
"""In the order of their numbers."""

Origins = npt.NDArray[np.void]
_NUMBER_OF = {domain: number for number, domain in enumerate(DOMAINS)}


def origins_of(documents: Sequence[Document | Conversation], rows: Sequence[int], *, source: int) -> Origins:
    """The records of some documents; no answer is counted yet, and all are for training.

    Args:
        documents: Of one file.
        rows: Of each, its row.
        source: Number of the file.
    """
    origins = np.zeros(len(documents), ORIGIN)
    origins["id_hash"] = np.fromiter((id_hash(document.id) for document in documents), np.uint64, len(documents))
    origins["row"] = rows
    origins["source"] = source
    origins["answer_tokens"] = -1
    origins["domain"] = np.fromiter((_NUMBER_OF[document.domain] for document in documents), np.uint8, len(documents))
    return origins


def tokens_of_domains(origins: Origins, lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Tokens of each domain, [domains] by number; a number that none has makes the array longer.

    Args:
        origins: [documents] their records.
        lengths: [documents] tokens of each.

    >>> origins = np.zeros(3, ORIGIN); origins["domain"] = [2, 0, 2]
    >>> tokens_of_domains(origins, np.array([5, 1, 7])).tolist()
    [1, 0, 12, 0]
    """
    sums = np.zeros(max(len(DOMAINS), int(origins["domain"].max(initial=0)) + 1), np.int64)
    np.add.at(sums, origins["domain"], lengths)
    return sums


def by_domain(tokens: npt.NDArray[np.int64]) -> dict[Domain, int]:
    """Tokens by the name of the domain, where there are any.

    Args:
        tokens: [domains] by number.
    """
    return {domain: int(count) for domain, count in zip(DOMAINS, tokens, strict=True) if count}
