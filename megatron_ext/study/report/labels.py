"""Stages with their replicates, and the names under which tables, curves and the graph show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.study.report.evaluated import PlannedRow
from megatron_ext.study.study_plan import StageNode, StudyPlan


@dataclass(frozen=True)
class StageGroup:
    """One stage of the graph, with all its seeds.

    Attributes:
        label: That of the table's row which ends here, else the recipe's name, with more of the chain where two would
            be alike.
        arms: That pass through it.
        stages: Of each seed.
        parent: Id of the first seed's parent stage; None at the beginning of a chain.
        tokens_before: Processed in stages of the same kind before it in the chain.
    """

    label: str
    arms: tuple[str, ...]
    stages: tuple[StageNode, ...]
    parent: str | None
    tokens_before: int

    @property
    def node(self) -> str:
        """The id by which the graph knows it: of its first seed's stage."""
        return self.stages[0].stage_id


def groups_of(plan: StudyPlan, rows: Sequence[PlannedRow]) -> list[StageGroup]:
    """The stages of all arms, each once, in the order of the plan.

    Args:
        plan: The study.
        rows: `rows_of` it.
    """
    found: dict[str, StageGroup] = {}
    taken = {row.label for row in rows}
    for arm in plan.arms:
        for at in range(len(arm.chains[0])):
            first = arm.chains[0][at]
            if first in found:
                continue
            stages = tuple(plan.stage(one) for one in dict.fromkeys(chain[at] for chain in arm.chains))
            behind = [plan.stage(one) for one in arm.chains[0][:at]]
            label = _row_label(rows, first) or _free_label([Path(one).stem for one in arm.recipes[: at + 1]], taken)
            taken.add(label)
            found[first] = StageGroup(
                label=label,
                arms=stages[0].arms,
                stages=stages,
                parent=stages[0].parent,
                tokens_before=sum(stage.tokens for stage in behind if stage.stage == stages[0].stage),
            )
    order = {stage.stage_id: number for number, stage in enumerate(plan.stages)}
    return sorted(found.values(), key=lambda group: order[group.node])


def _row_label(rows: Sequence[PlannedRow], stage_id: str) -> str | None:
    return next((row.label for row in rows if row.stages[0].stage_id == stage_id), None)


def _free_label(stems: Sequence[str], taken: set[str]) -> str:
    tries = (" → ".join(stems[-count:]) for count in range(1, len(stems) + 1))
    return next((label for label in tries if label not in taken), " → ".join((*stems, "again")))
