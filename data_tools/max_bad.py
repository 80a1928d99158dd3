"""`--max-bad`: how many records of a job may be left out."""

from __future__ import annotations

from dataclasses import dataclass

from data_tools.errors import UsageError


@dataclass(frozen=True)
class MaxBad:
    """How many records may be left out.

    Attributes:
        records: This many; None: not limited so.
        percent: This much of all; None: not limited so.
    """

    records: int | None = None
    percent: float | None = None

    def allows(self, bad: int, *, of: int) -> bool:
        """Whether so many of some records may be left out.

        >>> [MaxBad(percent=0.5).allows(bad, of=400) for bad in (2, 3)]
        [True, False]
        """
        if self.records is not None:
            return bad <= self.records
        return self.percent is None or bad * 100 <= self.percent * of


def parse_max_bad(written: str) -> MaxBad:
    """Reads `100` or `0.5%`; empty is no limit.

    >>> parse_max_bad("100"), parse_max_bad("0.5%")
    (MaxBad(records=100, percent=None), MaxBad(records=None, percent=0.5))

    Raises:
        UsageError: If it is neither.
    """
    rule = "is neither a number of records (100) nor a percentage of them (0.5%)"
    try:
        if not written:
            return MaxBad()
        limit = MaxBad(percent=float(written[:-1])) if written.endswith("%") else MaxBad(records=int(written))
    except ValueError:
        raise UsageError(f"--max-bad: {written!r} {rule}") from None
    if not 0 <= (limit.records or limit.percent or 0) < float("inf"):
        raise UsageError(f"--max-bad: {written!r} {rule}")
    return limit
