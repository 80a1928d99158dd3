"""Everything about two arms or stages that can be compared, from what lies on the disk."""

from __future__ import annotations

from megatron_ext.plan.lineage import RUNS_FILE
from megatron_ext.study.comparison.content import Comparison, KeyDifference, SideFacts, StagePair
from megatron_ext.study.comparison.curves import curve_pairs
from megatron_ext.study.comparison.keys import plan_differences, study_differences
from megatron_ext.study.comparison.ledgers import ledger_differences
from megatron_ext.study.comparison.metrics import metric_differences
from megatron_ext.study.comparison.sides import Side, StageAt, named_places
from megatron_ext.study.lineage.lines import read_lines
from megatron_ext.study.lineage.record import RunFacts
from megatron_ext.study.study_plan import StudyPlan


def compare_sides(first: Side, second: Side, study: StudyPlan | None = None) -> Comparison:
    """Compares two arms or stages.

    Args:
        first: A.
        second: B.
        study: Whose arms they are; None where they were named by their folders.
    """
    notes: list[str] = []
    keys: list[KeyDifference] = []
    arms = [side.arm for side in (first, second) if side.arm is not None]
    are_two_arms = study is not None and len(set(arms)) == 2
    if study is not None and are_two_arms:
        keys += study_differences(study, *arms)
    pairs, ledger, curves, metrics = [], [], [], []
    for where, place in named_places(first, second).items():
        sides = (first.at(where), second.at(where))
        one, other = (side[0] if side else None for side in sides)
        pairs.append(_pair(place, one, other))
        ledger += ledger_differences(place, one, other, notes)
        if pairs[-1].is_shared:
            continue
        if one is not None and other is not None and one.plan is not None and other.plan is not None:
            found = plan_differences(place, one.plan, other.plan)
            keys += [key for key in found if not (are_two_arms and key.part == "meaning")]
            notes += _run_notes(place, one, other, notes)
        curves += curve_pairs(place, *sides, notes)
        metrics += metric_differences(place, *sides, notes)
    return Comparison(
        first=_facts(first),
        second=_facts(second),
        stages=tuple(pairs),
        keys=tuple(keys),
        ledger=tuple(ledger),
        curves=tuple(curves),
        metrics=tuple(metrics),
        notes=tuple(dict.fromkeys(notes)),
    )


def _facts(side: Side) -> SideFacts:
    return SideFacts(label=side.label, chains=tuple(tuple(stage.stage_id for stage in chain) for chain in side.chains))


def _pair(place: str, first: StageAt | None, second: StageAt | None) -> StagePair:
    return StagePair(
        place=place,
        first=first.stage_id if first else None,
        second=second.stage_id if second else None,
        is_shared=first is not None and first == second,
        first_state=first.state if first else "not there",
        second_state=second.state if second else "not there",
    )


def _run_notes(place: str, first: StageAt, second: StageAt, notes: list[str]) -> list[str]:
    """Sentences where two stages were trained by other code, other packages or on other machines."""
    runs = [read_lines(stage.folder / RUNS_FILE, RunFacts, notes) for stage in (first, second)]
    if not all(runs):
        unknown = " and ".join(letter for letter, found in zip("AB", runs, strict=True) if not found)
        return [f"{place}: which code trained {unknown} was not recorded"]
    said = []
    for what, of in (
        ("code (sha256 of its files)", lambda run: run.code.sha256[:12]),
        ("packages", lambda run: ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))),
        ("hardware", lambda run: (run.hardware.get("gpus") or [run.hardware.get("cpu")])[0]),
        ("backend", lambda run: run.backend),
    ):
        one, other = (sorted({str(of(run)) for run in found}) for found in runs)
        if one != other:
            said.append(f"{place}: other {what}: A {'; '.join(one)}; B {'; '.join(other)}")
    return said
