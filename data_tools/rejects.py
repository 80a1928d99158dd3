"""Records that are left out: counted by reason, listed one by one, and stopped where they are too many.

The list is JSONL, a record a line: file, line (counted from 1; in a part of a file from the start of the
part), reason, detail.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson

from data_tools.atomic_files import close_unwritten
from data_tools.errors import DataError
from data_tools.max_bad import parse_max_bad
from data_tools.parts import Part, place_of
from data_tools.readers import BadRecord


class Rejects:
    """The records that one job leaves out.

    Attributes:
        by_reason: How many, by reason.
    """

    def __init__(self, path: Path, *, skips: bool, max_bad: str) -> None:
        """Opens the list.

        Args:
            path: Of the list while the job runs.
            skips: Whether a bad record is left out, or ends the job.
            max_bad: See `parse_max_bad`.
        """
        self.by_reason: Counter[str] = Counter()
        self._skips = skips
        self._written = max_bad
        self._limit = parse_max_bad(max_bad)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("wb")

    def add(self, part: Part, row: int, error: BadRecord) -> None:
        """Leaves a record out.

        Raises:
            DataError: If none may be left out, or now too many are.
        """
        if not self._skips:
            raise DataError(
                f"{place_of(part, row)}: {error}; "
                "mend the line, or give --on-error skip to leave out such lines and list them"
            )
        self.by_reason[error.reason] += 1
        fields = {"file": str(part.file.path), "line": row, "reason": error.reason, "detail": error.detail}
        self._file.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))
        if self._limit.records is not None and not self._limit.allows(self.by_reason.total(), of=0):
            limit = f"{self._limit.records:,}"
            raise DataError(
                f"{place_of(part, row)}: {error}: more than --max-bad {limit} records are bad{self._most()}"
            )

    def check(self, documents: int) -> None:
        """Ends a job that left too large a part out, once all is read.

        Raises:
            DataError: If the limit is a percentage, and exceeded.
        """
        records = documents + self.by_reason.total()
        if not self._limit.allows(self.by_reason.total(), of=records):
            raise DataError(
                f"{self.by_reason.total():,} of {records:,} records are bad, more than --max-bad {self._written}"
                f"{self._most()}"
            )

    def _most(self) -> str:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in self.by_reason.most_common())
        return (
            f" ({counts}); nothing was written; mend the input, choose another --adapter or --key, or raise --max-bad"
        )

    def close(self) -> None:
        """Closes the list."""
        self._file.close()

    def discard(self) -> None:
        """Removes the list of a job that failed."""
        close_unwritten(self._file)
        self._path.unlink(missing_ok=True)
