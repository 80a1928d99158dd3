"""What two stages are and how they ran, key by key, from the plans that wrote their checkpoints.

Recipes may have been edited since; plans are what was trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from data_tools.quantities import format_count
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.study.comparison.content import KeyDifference, Place
from megatron_ext.study.study_plan import StudyPlan

_NOT_THERE = "(not there)"


def plan_differences(place: str, first: StagePlan, second: StagePlan) -> list[KeyDifference]:
    """The keys of two plans whose values differ: those that make other stages, and those of the placement."""
    parts: tuple[tuple[Place, dict[str, str], dict[str, str]], ...] = (
        ("meaning", _meaning(first), _meaning(second)),
        ("placement", _placement(first), _placement(second)),
    )
    return [
        KeyDifference(place=place, key=key, part=part, first=values[0], second=values[1])
        for part, one, other in parts
        for key in one | other
        if (values := (one.get(key, _NOT_THERE), other.get(key, _NOT_THERE)))[0] != values[1]
    ]


def study_differences(plan: StudyPlan, first: str, second: str) -> list[KeyDifference]:
    """What the study says that two of its arms differ in, and who permits it."""
    found = []
    for difference in plan.differences:
        values = {arm: group.value for group in difference.values for arm in group.arms}
        if values.get(first) != values.get(second):
            found.append(
                KeyDifference(
                    place=difference.stage,
                    key=difference.key,
                    part="study",
                    first=values.get(first, _NOT_THERE),
                    second=values.get(second, _NOT_THERE),
                    note=difference.permitted_by + (f": {difference.why}" if difference.why else ""),
                )
            )
    return found


def _meaning(plan: StagePlan) -> dict[str, str]:
    """A stage's meaning, with its blend in words and the content of each source under its name."""
    meaning = dict(plan.meaning)
    data = {key: value for key, value in meaning.pop("data", {}).items() if key not in ("sources", "phases")}
    found = {"data.blend": _blend(plan)} if plan.data.sources else {}
    found |= {f"data.{source.source}.data_id": source.data_id[:12] for source in plan.data.sources}
    return found | dict(_flat(meaning | {"data": data}))


def _blend(plan: StagePlan) -> str:
    phases = plan.data.all_phases()
    said = []
    for phase in phases:
        total = sum(source.samples for source in phase.sources) or 1
        parts = [f"{100 * source.samples / total:.4g} % {source.source}" for source in phase.sources]
        tokens = f"{format_count(phase.samples * plan.batch.sequence_length)} " if len(phases) > 1 else ""
        said.append(tokens + " + ".join(parts))
    return "; ".join(said)


def _placement(plan: StagePlan) -> dict[str, str]:
    parts = plan.model_dump(mode="json", include={"recipe", "layout", "cadence", "execution"})
    parts["batch"] = {"micro_batch_size": plan.batch.micro_batch_size}
    return dict(_flat(parts))


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, inside in value.items():
        name = f"{before}{key}"
        if isinstance(inside, Mapping):
            yield from _flat(inside, f"{name}.")
        else:
            yield name, inside if isinstance(inside, str) else json.dumps(inside)
