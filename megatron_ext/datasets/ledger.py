"""What a checkpoint has read, and how often: by source and phase, and over the chain of stages behind it.

It follows from two files of the checkpoint: `plan.json` says what was planned and what the stages before have
read, `state.json` how many samples of each source the cursor has dealt. A row:

| field            | meaning |
|------------------|---------|
| phase            | from 1; 0 are all stages that this one continues, summed |
| source, domain   | as planned |
| planned, read    | processed tokens: samples x sequence_length |
| epochs           | passes over the source that `read` makes |
| first, repeated  | tokens of `read` that no earlier row had read, and the others; null where a `cursor` was moved |

Worked example: a source of 400 tokens of which stages before read 160 has in a phase of 320 tokens
first 240 and repeated 80.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.quantities import format_exact
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_table import frame
from megatron_ext.plan.stage_plan import StagePlan


@dataclass(frozen=True)
class LedgerRow:
    """What one phase has read of one source; the fields are described at the top of this file."""

    phase: int
    source: str
    domain: str
    planned: int
    read: int
    epochs: float
    first: int | None
    repeated: int | None

    def to_json(self) -> dict[str, Any]:
        """The row as a plain mapping."""
        return asdict(self)


def ledger_of(plan: StagePlan, cursor: dict[str, Any]) -> list[LedgerRow]:
    """What has been read at a place of a stage.

    Args:
        plan: The stage.
        cursor: `BlendedCursor.state_dict` at that place.
    """
    length = plan.batch.sequence_length
    rows = []
    behind: defaultdict[str, int] = defaultdict(int)  # tokens read of each content
    moved: set[str] = set()
    for read in plan.parent.sources if plan.parent is not None else ():
        tokens = read.samples * length
        moved |= {read.data_id} if read.was_moved else set()
        first = None if read.was_moved else min(tokens, read.tokens)
        rows.append(_row(0, read.source, read.domain, (tokens, tokens), read.tokens, first))
        behind[read.data_id] = tokens
    sources = {source.source: source for source in plan.data.sources}
    for number, phase in enumerate(plan.data.all_phases()):
        counts = cursor["samples"] if number == cursor["phase"] else None
        for place, given in enumerate(phase.sources):
            source = sources[given.source]
            dealt = counts[place] if counts is not None else given.samples if number < cursor["phase"] else 0
            tokens, before = dealt * length, behind[source.data_id]
            moved |= {source.data_id} if given.cursor != "continue" else set()
            new = None if source.data_id in moved else max(0, min(tokens, source.tokens - before))
            both = given.samples * length, tokens
            rows.append(_row(number + 1, given.source, source.domain, both, source.tokens, new))
            behind[source.data_id] += tokens
    return rows


def _row(phase: int, source: str, domain: str, both: tuple[int, int], has: int, first: int | None) -> LedgerRow:
    planned, read = both
    repeated = read - first if first is not None else None
    return LedgerRow(phase, source, domain, planned, read, read / has, first, repeated)


def read_ledger(path: Path) -> list[LedgerRow]:
    """The ledger of a checkpoint; of a stage's folder that of its newest one.

    Raises:
        DataError: There is no checkpoint, or one of an earlier version.
    """
    if not (path / "state.json").is_file():
        found = sorted((path / "checkpoints").glob("step_*"), key=lambda step: int(step.name.removeprefix("step_")))
        if not found:
            raise DataError(f"{path}: no checkpoint; name a stage's folder, or one of its checkpoints/step_N")
        path = found[-1]
    try:
        plan = StagePlan.model_validate_json((path / "plan.json").read_bytes())
        return ledger_of(plan, json.loads((path / "state.json").read_bytes())["cursor"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{path}: plan.json or state.json is missing, damaged or of another version; take a whole checkpoint"
        ) from None


def ledger_json(rows: Sequence[LedgerRow]) -> str:
    """The rows as JSON."""
    return json.dumps([row.to_json() for row in rows], indent=1)


def print_ledger(rows: Sequence[LedgerRow], path: Path) -> None:
    """Prints the rows, and the sum of each source and domain."""
    console = terminal()
    console.print(str(path))
    table = frame("phase", "source", "domain", "planned", "read", "epochs", "first", "repeated")
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        _add(table, str(row.phase) if row.phase else "before", row.source, row.domain, [row])
    for source in dict.fromkeys(row.source for row in rows):
        mine = [row for row in rows if row.source == source]
        _add(table, "all", source, mine[0].domain, mine)
    for domain in dict.fromkeys(row.domain for row in rows):
        _add(table, "all", "", domain, [row for row in rows if row.domain == domain], with_epochs=False)
    _add(table, "all", "", "", rows, with_epochs=False)
    console.print(table)


def _add(
    table: Any, phase: str, source: str, domain: str, rows: Sequence[LedgerRow], *, with_epochs: bool = True
) -> None:
    first = [row.first for row in rows if row.first is not None]
    repeated = [row.repeated for row in rows if row.repeated is not None]
    is_known = len(first) == len(rows)
    table.add_row(
        phase,
        source,
        domain,
        format_exact(sum(row.planned for row in rows)),
        format_exact(sum(row.read for row in rows)),
        f"{sum(row.epochs for row in rows):.3g}" if with_epochs else "",
        format_exact(sum(first)) if is_known else "unknown",
        format_exact(sum(repeated)) if is_known else "unknown",
    )
