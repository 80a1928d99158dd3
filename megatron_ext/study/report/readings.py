"""What each arm read, from the ledgers of its stages."""

from __future__ import annotations

import json
from pathlib import Path

from data_tools.errors import DataError
from megatron_ext.datasets.ledger import PADDING, LedgerRow, read_ledger, sum_rows
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.study.report.content import ArmReading, SourceRead, StageRead
from megatron_ext.study.state import States
from megatron_ext.study.study_plan import StageNode, StudyPlan


def readings_of(plan: StudyPlan, states: States) -> list[ArmReading]:
    """What every arm read, of its first replicate.

    Args:
        plan: The study.
        states: `states_of` it.
    """
    ledgers = {stage.stage_id: _ledger(Path(plan.run_root) / "stages" / stage.stage_id) for stage in plan.stages}
    found = []
    for arm in plan.arms:
        stages = [plan.stage(stage_id) for stage_id in arm.chains[0]]
        reads = tuple(
            _stage_read(stage, recipe, ledgers[stage.stage_id], states[stage.stage_id].state, arm.id)
            for stage, recipe in zip(stages, arm.recipes, strict=True)
        )
        found.append(ArmReading(arm=arm.id, note=arm.note, seeds=len(arm.chains), stages=reads))
    return found


def _ledger(folder: Path) -> list[LedgerRow]:
    """The ledger of a finished stage; of another one that of its newest checkpoint; [] where nothing is known."""
    if (folder / STAGE_FILE).is_file():
        try:
            return [LedgerRow(**row) for row in json.loads((folder / STAGE_FILE).read_bytes())["ledger"]]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{folder / STAGE_FILE}: damaged, or of another version") from None
    return read_ledger(folder) if any(folder.glob("checkpoints/step_*/ledger.json")) else []


def _stage_read(stage: StageNode, recipe: str, rows: list[LedgerRow], state: str, arm: str) -> StageRead:
    own = [row for row in rows if row.phase > 0]
    sources = [row for row in own if row.data_id != PADDING]
    by_source = {data_id: [row for row in sources if row.data_id == data_id] for data_id in _ids(sources)}
    return StageRead(
        stage=stage.stage,
        stage_id=stage.stage_id,
        recipe=recipe,
        state=state,
        planned_tokens=stage.tokens,
        shared_with=tuple(other for other in stage.arms if other != arm),
        padding_tokens=sum(row.padding for row in sources) + sum(row.read for row in own if row.data_id == PADDING),
        sources=tuple(_source_read(parts) for parts in by_source.values()),
    )


def _ids(rows: list[LedgerRow]) -> list[str]:
    return list(dict.fromkeys(row.data_id for row in rows))


def _source_read(rows: list[LedgerRow]) -> SourceRead:
    whole = sum_rows(rows)
    return SourceRead(
        source=whole.source,
        domain=whole.domain,
        tokens=whole.read,
        trained_tokens=whole.trained,
        sampled_tokens=whole.sampled,
        passes=whole.epochs,
        first_tokens=whole.first,
        repeated_tokens=whole.repeated,
        documents_first=whole.documents_first,
        documents_repeated=whole.documents_repeated,
    )
