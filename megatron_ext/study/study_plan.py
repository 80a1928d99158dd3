"""What a study will do: its arms, the graph of stages that they share, their evaluations, and how they differ.

Plain and frozen, without torch; `study.json` is this as JSON. A stage stands in it once, whichever arms it serves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_tools.errors import DataError
from megatron_ext.recipe.study_schema import FindingRecipe, StageKind

Takes = Literal["everything", "weights"]
"""What a stage takes of the one before it: by `continue`, by `init_from`."""


class StudyPart(BaseModel):
    """A frozen part of a study's plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Hardware(StudyPart):
    """What GPU-hours and memory are counted for."""

    gpu: str  # a key of `cost.PEAK_TFLOPS`, or a peak in TFLOP/s
    mfu: float  # model FLOPs utilisation, in (0, 1]


class Cost(StudyPart):
    """Sums over stages, each counted once."""

    tokens: int
    sampled_tokens: int  # of rl stages, in tokens, at most
    flops: int
    disk_bytes: int  # of the checkpoints that stay
    gpu_seconds: float | None = None  # None without hardware


class StageNode(StudyPart):
    """One stage to be trained once, for all arms that need it."""

    stage_id: str
    stage: StageKind
    recipe: str  # path, as `megatron_ext.run` takes it from the working directory
    overrides: tuple[str, ...]  # `--set` of each; they name the parent by its id: run when that is finished
    parent: str | None  # stage id
    takes: Takes | None  # of the parent: continue, init_from
    replicate: int  # 0 is the recipe with its own seed
    seed: int
    arms: tuple[str, ...]  # ids
    is_provisional: bool  # data is declared, not built: it can be planned, not run
    model: str
    world_size: int  # of the layout
    total_steps: int
    tokens: int  # processed, of this stage alone
    sampled_tokens: int = 0  # rl: of them, at most
    flops: int
    peak_memory_bytes: int  # of the fullest rank, temporary buffers on top
    checkpoint_bytes: int  # of one
    kept_checkpoints: int  # on disk when it is finished
    gpu_seconds: float | None = None  # None without a stated GPU and MFU

    @property
    def disk_bytes(self) -> int:
        """Of all the checkpoints that stay."""
        return self.checkpoint_bytes * self.kept_checkpoints


class EvaluationNode(StudyPart):
    """One suite, judged on one finished stage."""

    node_id: str  # "<stage id>/<folder>"
    stage_id: str
    suite: str  # path
    suite_name: str
    folder: str  # under stages/<stage id>/evaluations/: suite name and a hash of the suite file's bytes


class ArmPlan(StudyPart):
    """One arm: the stages that it goes through, once for each replicate of its last stage."""

    id: str
    chains: tuple[tuple[str, ...], ...]  # stage ids, first to last
    recipes: tuple[str, ...]  # paths, as long as a chain
    note: str = ""
    cost: Cost  # of all its stages, shared ones included


class ArmsWithValue(StudyPart):
    """The arms that have one value of a key."""

    value: str
    arms: tuple[str, ...]


class ArmDifference(StudyPart):
    """One key in which arms differ after one kind of stage."""

    key: str
    stage: StageKind
    values: tuple[ArmsWithValue, ...]  # in the order of arms
    permitted_by: Literal["varies", "confounds"]
    why: str = ""  # of confounds


class StudyTotals(StudyPart):
    """Of the whole study."""

    arms: int
    chain_stages: int  # stages of each arm, summed over arms
    unique_stages: int
    evaluations: int
    cost: Cost
    unshared: Cost  # if each arm trained all its own stages


class StudyPlan(StudyPart):
    """A study, decided."""

    name: str
    path: str
    note: str = ""
    run_root: str
    arms: tuple[ArmPlan, ...]
    stages: tuple[StageNode, ...]  # parents stand before those that need them
    evaluations: tuple[EvaluationNode, ...]
    varies: tuple[str, ...]
    baseline: str | None
    differences: tuple[ArmDifference, ...]
    findings: tuple[FindingRecipe, ...]
    findings_left_out: tuple[str, ...] = ()  # names of those whose arms are not all in this plan
    findings_notes: tuple[str, ...] = ()  # what to know of their numbers
    main_metrics: dict[StageKind, str] = {}  # that most findings ask for, left out or not
    totals: StudyTotals
    hardware: Hardware | None = None

    @property
    def is_provisional(self) -> bool:
        """Whether some stage can be planned and not run, for its data is not built."""
        return any(stage.is_provisional for stage in self.stages)

    def arm(self, arm_id: str) -> ArmPlan:
        """The arm of an id."""
        return next(arm for arm in self.arms if arm.id == arm_id)

    def stage(self, stage_id: str) -> StageNode:
        """The stage of an id."""
        return next(stage for stage in self.stages if stage.stage_id == stage_id)

    def children(self, stage_id: str) -> tuple[StageNode, ...]:
        """The stages that begin from a stage."""
        return tuple(stage for stage in self.stages if stage.parent == stage_id)

    def roots(self) -> tuple[StageNode, ...]:
        """The stages that begin from no stage of the study."""
        known = {stage.stage_id for stage in self.stages}
        return tuple(stage for stage in self.stages if stage.parent not in known)

    def evaluations_of(self, stage_id: str) -> tuple[EvaluationNode, ...]:
        """The evaluations of a stage."""
        return tuple(one for one in self.evaluations if one.stage_id == stage_id)

    def stages_after(self, arm_id: str, kind: StageKind) -> tuple[StageNode, ...]:
        """The last stage of a kind in an arm, once each where chains share it; none where the arm has no such stage."""
        found: dict[str, StageNode] = {}
        for chain in self.arm(arm_id).chains:
            of_kind = [stage for stage in map(self.stage, chain) if stage.stage == kind]
            if of_kind:
                found[of_kind[-1].stage_id] = of_kind[-1]
        return tuple(found.values())

    def to_json(self) -> str:
        """It as JSON, as `read_study_plan` reads it."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def read_study_plan(path: Path) -> StudyPlan:
    """A plan that was written before.

    Raises:
        DataError: It is not there, damaged, or of another version.
    """
    try:
        return StudyPlan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; plan the study again") from None
    except ValidationError:
        raise DataError(f"{path}: damaged, or of another version; plan the study again") from None
