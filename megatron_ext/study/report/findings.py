"""Whether a study shows what it claims: each comparison's difference, interval and verdict.

| verdict            | of `expect: higher`      | of `expect: equal`, with `within` points |
|--------------------|--------------------------|------------------------------------------|
| shows              | the interval is above 0  | the interval lies inside ±within         |
| shows the opposite | the interval is below 0  | the interval lies outside ±within        |
| cannot tell        | it holds 0, or is none   | else                                     |
| not run            | a number is missing      | a number is missing                      |

A finding shows if all its comparisons do, and shows the opposite if one of them does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from megatron_ext.recipe.study_schema import STAGE_NAMES, ComparisonRecipe, FindingRecipe
from megatron_ext.study.report.measured import Measured
from megatron_ext.study.report.numbers import Comparison, Drawn, Estimate, Finding, PaperNumber, Verdict
from megatron_ext.study.report.table import EvaluatedSuite
from megatron_ext.study.study_plan import StudyPlan

_ALONE: dict[Drawn, str] = {
    "items": "; of items alone: with one seed nothing is known of others",
    "seeds": "; of seeds alone: items were not kept",
}

_POINTS = 100
"""Points of a share of 1: numbers of papers and margins stand in points."""


def findings_of(plan: StudyPlan, suites: Sequence[EvaluatedSuite]) -> list[Finding]:
    """All findings that the study asks for."""
    return [_finding(finding, plan, suites) for finding in plan.findings]


def _finding(finding: FindingRecipe, plan: StudyPlan, suites: Sequence[EvaluatedSuite]) -> Finding:
    comparisons = tuple(_comparison(one, plan, suites) for one in finding.comparisons)
    return Finding(
        name=finding.name,
        says=finding.says,
        verdict=overall([one.verdict for one in comparisons]),
        comparisons=comparisons,
    )


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a finding from those of its comparisons.

    >>> overall(["shows", "cannot tell"]), overall(["not run", "shows the opposite"]), overall(["shows", "not run"])
    ('cannot tell', 'shows the opposite', 'not run')
    """
    weakest: tuple[Verdict, ...] = ("shows the opposite", "not run", "cannot tell", "shows")
    assert set(weakest) == set(get_args(Verdict))
    return next(verdict for verdict in weakest if verdict in verdicts)


def _comparison(asked: ComparisonRecipe, plan: StudyPlan, suites: Sequence[EvaluatedSuite]) -> Comparison:
    suite = _suite_of(asked, suites)
    measured = suite.metric(asked.metric) if suite is not None else None
    groups: list[list[int]] = []
    missing = "" if measured is not None else f"{asked.metric} after {STAGE_NAMES[asked.stage]} has not been evaluated"
    if suite is not None and measured is not None:
        groups = [[_row_of(arm, suite) for arm in arms] for arms in (asked.better, asked.than)]
        without = [
            arm
            for arms, rows in zip((asked.better, asked.than), groups, strict=True)
            for arm, row in zip(arms, rows, strict=True)
            if row < 0 or not measured.values[row]
        ]
        missing = f"no number of {', '.join(dict.fromkeys(without))}" if without else ""
    delta = measured.difference(*groups) if measured is not None and not missing else None
    verdict, reason = _verdict(asked, measured, groups, missing, delta)
    seeds = [len(measured.values[row]) for rows in groups for row in rows if row >= 0] if measured is not None else [0]
    return Comparison(
        better=asked.better,
        than=asked.than,
        stage=asked.stage,
        suite=suite.suite if suite is not None else asked.suite,
        metric=asked.metric,
        expect=asked.expect,
        within=asked.within,
        is_share=measured.info.is_share if measured is not None else True,
        unit=measured.info.unit if measured is not None else "",
        better_value=_mean(measured, groups[0]) if measured is not None else None,
        than_value=_mean(measured, groups[1]) if measured is not None else None,
        delta=delta,
        seeds=(min(seeds), max(seeds)),
        items=measured.info.items if measured is not None else None,
        drawn=measured.drawn([*groups[0], *groups[1]]) if measured is not None and delta is not None else "nothing",
        verdict=verdict,
        reason=reason,
        paper=PaperNumber(**asked.paper.model_dump()) if asked.paper is not None else None,
    )


def _suite_of(asked: ComparisonRecipe, suites: Sequence[EvaluatedSuite]) -> EvaluatedSuite | None:
    of_stage = [one for one in suites if one.stage == asked.stage and asked.suite in ("", one.suite)]
    return next((one for one in of_stage if one.metric(asked.metric) is not None), next(iter(of_stage), None))


def _row_of(arm: str, suite: EvaluatedSuite) -> int:
    """The row of an arm; -1 where it has no stage of this kind."""
    return next((number for number, row in enumerate(suite.rows) if arm in row.arms), -1)


def _mean(measured: Measured, rows: Sequence[int]) -> float | None:
    values = [measured.value(row) if row >= 0 else None for row in rows]
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if len(found) == len(values) else None


def _verdict(
    asked: ComparisonRecipe,
    measured: Measured | None,
    groups: Sequence[Sequence[int]],
    missing: str,
    delta: Estimate | None,
) -> tuple[Verdict, str]:
    if missing or measured is None:
        return "not run", missing
    if delta is None:
        return "cannot tell", "the arms were asked other items, or counted otherwise"
    if delta.low is None or delta.high is None:
        return "cannot tell", "there is no interval: items were not kept, and there is one seed"
    alone = _ALONE.get(measured.drawn([*groups[0], *groups[1]]), "")
    if asked.expect == "equal":
        return _verdict_of_equal(asked, measured, delta.low, delta.high, alone)
    if delta.low > 0:
        return "shows", f"the interval is above 0{alone}"
    if delta.high < 0:
        return "shows the opposite", f"the interval is below 0{alone}"
    return "cannot tell", f"the interval holds 0{alone}"


def _verdict_of_equal(
    asked: ComparisonRecipe, measured: Measured, low: float, high: float, alone: str
) -> tuple[Verdict, str]:
    points = asked.within or 0.0
    within = points / (_POINTS if measured.info.is_share else 1)
    if -within <= low and high <= within:
        return "shows", f"the interval lies within ±{points:g}{alone}"
    if low > within or high < -within:
        return "shows the opposite", f"the interval lies outside of ±{points:g}{alone}"
    return "cannot tell", f"the interval is not within ±{points:g}, and not outside of it{alone}"
