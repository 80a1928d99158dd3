"""The two that are compared, as they lie on the disk: chains of stages, and which stage stands opposite which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError
from megatron_ext.datasets.ledger import checkpoint_at
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.study.lineage.read import read_plan
from megatron_ext.study.named import arm_named, checkpoint_of
from megatron_ext.study.study_plan import StudyPlan

Place = tuple[str, int]
"""A kind of stage, and which stage of that kind in its chain, from 1."""


@dataclass(frozen=True)
class StageAt:
    """One stage of a chain.

    Attributes:
        stage_id: Its id.
        folder: Where it is, or would be.
        plan: That wrote its checkpoint; None where there is none yet.
        checkpoint: The one that counts; None where there is none yet.
    """

    stage_id: str
    folder: Path
    plan: StagePlan | None
    checkpoint: Path | None

    @property
    def kind(self) -> str:
        """Kind of stage, which its id begins with."""
        return self.stage_id.split("-")[0]

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.plan is None or self.checkpoint is None:
            return "not run"
        step, total = int(self.checkpoint.name.removeprefix("step_")), self.plan.batch.total_steps
        if step < total:
            return f"step {step:,} of {total:,}"
        return "finished" if (self.folder / STAGE_FILE).is_file() else f"step {step:,} of {total:,}, not finished"


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        label: As it was named.
        chains: Of each replicate, first stage first; one at least.
        arm: Id of the arm; None of a stage in no study.
    """

    label: str
    chains: tuple[tuple[StageAt, ...], ...]
    arm: str | None = None

    def places(self) -> list[Place]:
        """The places of its chains."""
        kinds = [stage.kind for stage in self.chains[0]]
        return [(kind, kinds[: number + 1].count(kind)) for number, kind in enumerate(kinds)]

    def at(self, place: Place) -> tuple[StageAt, ...]:
        """The stages of a place, of each replicate; those that replicates share once."""
        places = self.places()
        if place not in places:
            return ()
        found = {chain[places.index(place)].stage_id: chain[places.index(place)] for chain in self.chains}
        return tuple(found.values())


def side_named(name: str, study: StudyPlan | None = None) -> Side:
    """What somebody means.

    Args:
        name: A stage's folder or a checkpoint; with `study` an arm, or `ARM#N` for one replicate of it.
        study: The plan of a study.

    Raises:
        DataError: There is no checkpoint.
        UsageError: There is no such arm.
    """
    if study is not None:
        arm = arm_named(name, study)
        return Side(name, tuple(tuple(map(_stage_at, chain)) for chain in arm.chains), arm.arm)
    checkpoint = checkpoint_of(name).absolute()
    plan = read_plan(checkpoint / "plan.json")
    folder = checkpoint.parents[1]
    behind = plan.behind.chain if plan.behind is not None else ()
    last = StageAt(plan.stage_id, folder, plan, checkpoint)
    return Side(name, ((*(_stage_at(folder.parent / stage.stage_id) for stage in behind), last),))


def named_places(first: Side, second: Side) -> dict[Place, str]:
    """The places of both chains, those of the longer one first, and their names.

    >>> first, second = (Side("", (tuple(StageAt(f"{kind}-1", Path(), None, None) for kind in kinds),))
    ...                  for kinds in (["pretrain", "sft"], ["pretrain", "sft", "sft"]))
    >>> list(named_places(first, second).values())
    ['pretrain', 'sft 1', 'sft 2']
    """
    longer, other = sorted((first.places(), second.places()), key=len, reverse=True)
    places = list(dict.fromkeys([*longer, *other]))
    numbered = {kind for kind, number in places if number > 1}
    return {(kind, number): f"{kind} {number}" if kind in numbered else kind for kind, number in places}


def _stage_at(folder: Path) -> StageAt:
    folder = folder.absolute()
    try:
        checkpoint = checkpoint_at(folder)
        return StageAt(folder.name, folder, read_plan(checkpoint / "plan.json"), checkpoint)
    except DataError:
        return StageAt(folder.name, folder, None, None)
