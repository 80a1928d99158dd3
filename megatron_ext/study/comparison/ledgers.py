"""What the stages of both have read, source by source."""

from __future__ import annotations

from data_tools.errors import DataError
from megatron_ext.datasets.ledger import LedgerRow, read_ledger, sum_by_source
from megatron_ext.study.comparison.content import LedgerDifference
from megatron_ext.study.comparison.sides import StageAt


def ledger_differences(
    place: str, first: StageAt | None, second: StageAt | None, notes: list[str]
) -> list[LedgerDifference]:
    """Every source that one of two stages has read; padding, which is of no source, among them.

    Args:
        place: Where they stand.
        first: Of A; None where its chain has no such place.
        second: Of B.
        notes: Takes a sentence where a ledger cannot be read.
    """
    rows = [_rows(stage, notes) for stage in (first, second)]
    found = []
    for data_id in dict.fromkeys([*rows[0], *rows[1]]):
        one, other = (side.get(data_id) for side in rows)
        known = one or other
        assert known is not None, "a source of neither side"
        found.append(
            LedgerDifference(
                place=place,
                source=known.source,
                domain=known.domain,
                data_id=data_id,
                first_tokens=one.read if one else 0,
                second_tokens=other.read if other else 0,
                first_epochs=one.epochs if one else 0.0,
                second_epochs=other.epochs if other else 0.0,
                first_trained=one.trained if one else 0,
                second_trained=other.trained if other else 0,
            )
        )
    return found


def _rows(stage: StageAt | None, notes: list[str]) -> dict[str, LedgerRow]:
    """What a stage has read itself, by content."""
    if stage is None or stage.checkpoint is None:
        return {}
    try:
        rows = read_ledger(stage.checkpoint)
    except DataError as error:
        notes.append(f"{stage.stage_id}: what it read is not known: {error}")
        return {}
    return {row.data_id: row for row in sum_by_source([row for row in rows if row.phase])}
