"""The control condition: arms are equal in everything but what the study says that they vary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_ext.recipe.study_load import LoadedStudy
from megatron_ext.study.nodes import PlannedStage
from megatron_ext.study.study_plan import ArmDifference


def arm_differences(study: LoadedStudy, chains: Mapping[str, Sequence[PlannedStage]]) -> tuple[ArmDifference, ...]:
    """What arms differ in, once for each key and kind of stage."""
    return ()
