"""What a study asks for: arms, what they may differ in, where they are judged, and what is expected of them.

An arm is a chain of stage recipes. A study names arms, or makes them of axes, and says which keys tell them apart. Both
are files of a few lines; `study_load.py` joins them.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from data_tools.schema import NAME, Count, Number
from data_tools.schema import Section as Section

StageKind = Literal["pretrain", "sft", "rl"]

STAGE_KINDS: tuple[StageKind, ...] = ("pretrain", "sft", "rl")
"""In the order of a chain."""

STAGE_NAMES: dict[StageKind, str] = {"pretrain": "pretraining", "sft": "fine-tuning", "rl": "RL"}
"""In prose."""

Scalar = str | int | float | bool | None


class StageSettings(Section):
    """Keys that are set over the recipes of a kind of stage, as `--set` does."""

    pretrain: dict[str, Scalar] = Field(default={}, description="Keys of the pretrain stages, such as optimizer.lr.")
    sft: dict[str, Scalar] = Field(default={}, description="Keys of the sft stages.")
    rl: dict[str, Scalar] = Field(default={}, description="Keys of the rl stages.")


class ArmRecipe(Section):
    """One allocation: a chain of stages."""

    arm: str = Field(pattern=NAME, description="Name of the arm: letters, digits, '_' and '-'.")
    stages: tuple[str, ...] = Field(
        min_length=1, description="Stage recipes, first to last, relative to this file; each takes up the one before."
    )
    note: str = Field(default="", description="What a reader of the report should know of it.")
    settings: StageSettings = Field(
        default=StageSettings(), alias="set", description="Keys set over its recipes, by kind of stage."
    )


class MatrixRecipe(Section):
    """Arms made of axes: one for each combination of values."""

    axes: dict[str, dict[str, str | tuple[str, ...] | None]] = Field(
        min_length=1,
        description="Axes in the order of the chain, each with its values: a stage recipe, several, or null for none. "
        "An arm's id joins the names of its values (letters, digits, '_', '-') with '-'; values of null leave no name.",
    )
    note: str = Field(default="", description="What a reader of the report should know of these arms.")
    settings: StageSettings = Field(
        default=StageSettings(), alias="set", description="Keys set over its recipes, by kind of stage."
    )


class ConfoundRecipe(Section):
    """What arms differ in beside `varies`, knowingly."""

    key: str = Field(description="The key that differs, or a section above it.")
    stage: StageKind | None = Field(default=None, description="The kind of stage where it differs; null: any.")
    arms: tuple[str, ...] = Field(
        default=("*",),
        min_length=1,
        description="The arms that may differ from the others; '*' stands for any letters.",
    )
    why: str = Field(min_length=1, description="The reason, for whoever reads the comparison.")


class StageSuites(Section):
    """Suites that judge every stage of a kind that ends it in some arm."""

    pretrain: tuple[str, ...] = Field(default=(), description="Suite files, relative to this file.")
    sft: tuple[str, ...] = Field(default=(), description="Suite files, relative to this file.")
    rl: tuple[str, ...] = Field(default=(), description="Suite files, relative to this file.")


class StageSeeds(Section):
    """How often each stage is trained, with other seeds; a kind that no arm has counts for nothing."""

    pretrain: Count = Field(default=1, gt=0, description="Replicates of each pretrain stage.")
    sft: Count = Field(default=1, gt=0, description="Replicates of each sft stage; a multiple of those of pretrain.")
    rl: Count = Field(default=1, gt=0, description="Replicates of each rl stage; a multiple of those of sft.")


class PaperNumbers(Section):
    """What the paper reports for a comparison, in points."""

    better: Number | None = Field(default=None, description="Its number for `better`.")
    than: Number | None = Field(default=None, description="Its number for `than`.")
    delta: Number = Field(description="The difference, better - than.")
    source: str = Field(description="Where it stands: a page and its anchor, from the root of the repository.")
    remark: str = Field(default="", description="What to know when reading it.")


class ComparisonRecipe(Section):
    """Two groups of arms, judged by one number after one kind of stage."""

    better: tuple[str, ...] = Field(min_length=1, description="Arms that are expected to score higher; their mean.")
    than: tuple[str, ...] = Field(min_length=1, description="Arms that they are compared with; their mean.")
    stage: StageKind = Field(description="After which kind of stage.")
    metric: str = Field(description="An aggregate, a task or a domain of the suite.")
    suite: str = Field(default="", description="Name of the suite, where several judge this kind of stage.")
    expect: Literal["higher", "equal"] = Field(default="higher", description="What is claimed of `better`.")
    within: Number | None = Field(
        default=None, gt=0, description="expect equal only: points; a difference inside plus or minus these is none."
    )
    paper: PaperNumbers | None = Field(default=None, description="The paper's own numbers.")

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.expect == "equal" and self.within is None:
            raise ValueError("expect is equal, and nothing says how near that is; add within, in points")
        if self.expect == "higher" and self.within is not None:
            raise ValueError(f"within is {self.within:g}, and expect is higher; within goes with expect: equal")
        if both := [arm for arm in self.better if arm in self.than]:
            raise ValueError(f"better and than both name {', '.join(both)}: no arm is compared with itself")
        return self


class FindingRecipe(Section):
    """A claim that the study can show or not."""

    name: str = Field(pattern=NAME, description="Name of the finding.")
    says: str = Field(description="The claim in one sentence.")
    comparisons: tuple[ComparisonRecipe, ...] = Field(min_length=1, description="All of them must hold.")

    @property
    def arms(self) -> set[str]:
        """All that it compares."""
        return {arm for one in self.comparisons for arm in (*one.better, *one.than)}


class StudyRecipe(Section):
    """A study, complete."""

    study: str = Field(pattern=NAME, description="Name of the study; its runs are recorded under it.")
    note: str = Field(default="", description="What a reader of the report should know.")
    arms: tuple[str, ...] = Field(default=(), description="Arm files, relative to this file.")
    matrix: tuple[MatrixRecipe, ...] = Field(default=(), description="Arms made of axes.")
    settings: StageSettings = Field(
        default=StageSettings(), alias="set", description="Keys set over the recipes of all arms, by kind of stage."
    )
    varies: tuple[str, ...] = Field(
        default=(), description="Keys, or sections, in which arms differ by intent; in others they must be equal."
    )
    confounds: tuple[ConfoundRecipe, ...] = Field(default=(), description="Other differences, with the reason of each.")
    baseline: str | None = Field(default=None, description="The arm that others are compared with; null: none.")
    evaluate: StageSuites = Field(default=StageSuites(), description="Suites by kind of stage.")
    seeds: StageSeeds = Field(default=StageSeeds(), description="Replicates by kind of stage.")
    findings: tuple[FindingRecipe, ...] = Field(default=(), description="What is expected, to be shown or not.")
    findings_notes: tuple[str, ...] = Field(
        default=(), description="What a reader of the report must know of the findings' numbers, and of the paper's."
    )
