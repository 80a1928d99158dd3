"""The five questions of whoever opens a report, answered from it in sentences."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.recipe.study_schema import STAGE_NAMES
from megatron_ext.study.page.wording import (
    amount,
    amount_better,
    count,
    duration,
    heading,
    interval,
    plural,
    ratio,
    seeds,
    value,
)
from megatron_ext.study.report.bootstrap import DRAWS, LEVEL
from megatron_ext.study.report.content import ArmReading, Report
from megatron_ext.study.report.numbers import Estimate, Headline, MetricInfo


@dataclass(frozen=True)
class Answer:
    """One question.

    Attributes:
        question: As a reader asks it.
        short: The answer in a few words.
        lines: What belongs to it.
    """

    question: str
    short: str
    lines: tuple[str, ...]


def main_headline(report: Report) -> Headline | None:
    """That of the last kind of stage with at least two rows, and half as many as any other; else of the last with any.

    Where two arms of twenty go on to RL, the best arm is none of a choice of two.
    """
    found = [one for one in report.headlines if one.best is not None]
    most = max((one.evaluated for one in found), default=0)
    wide = (one for one in found if one.evaluated > 1 and 2 * one.evaluated >= most)
    return next(wide, next(iter(found), None))


def answers_of(report: Report) -> list[Answer]:
    """All five."""
    head = main_headline(report)
    if head is None:
        questions = ("Which arm is best?", "By how much?", "Is it noise?")
        none = [Answer(question, "Not known yet", ("Nothing has been evaluated.",)) for question in questions]
        return [*none, _read(report, head), _cost(report)]
    info = _info(report, head)
    others = [one for one in report.headlines if one is not head and one.best is not None]
    return [
        _best(head, info, others, report),
        _by_how_much(head, info, report),
        _noise(report, head, info),
        _read(report, head),
        _cost(report),
    ]


def _info(report: Report, head: Headline) -> MetricInfo:
    return next(
        one
        for one in report.metrics
        if (one.stage, one.suite, one.name) == (head.stage, head.suite, head.metric) and one.role != "domain"
    )


def _best(head: Headline, info: MetricInfo, others: list[Headline], report: Report) -> Answer:
    assert head.value is not None, "there is a best row"
    lower = "" if info.is_higher_better else ", lower is better"
    shown = f"{amount(head.value.value, info)} {interval(head.value, is_share=info.is_share)}".strip()
    lines = [
        f"{shown} after {STAGE_NAMES[head.stage]}, by {head.metric} of suite {head.suite} ({head.chosen}{lower}); "
        f"{head.evaluated} of {plural(head.rows, 'row')} evaluated."
    ]
    if head.tied:
        at_end = " That is an end of the scale: this test cannot tell them apart." if _is_end(head.value, info) else ""
        lines.insert(0, f"Equal: {', '.join(head.tied)}.{at_end}")
    lines += [_other(one, _info(report, one)) for one in others]
    short = f"None: {len(head.tied)} are equal" if head.tied else head.best or ""
    if head.evaluated == 1:
        short = f"Not known: only {head.best} has been evaluated"
    return Answer("Which arm is best?", short, tuple(lines))


def _other(other: Headline, info: MetricInfo) -> str:
    """The best after another kind of stage, in a sentence."""
    assert other.value is not None, "there is a best row"
    only = "only " if other.evaluated == 1 else "equal " if other.tied else ""
    best = ", ".join(other.tied) or other.best
    shown = amount(other.value.value, info)
    return f"After {STAGE_NAMES[other.stage]}, by {other.metric} of {other.suite}: {only}{best}, {shown}."


def _is_end(found: Estimate, info: MetricInfo) -> bool:
    return info.is_share and found.value in (0, 1)


def _by_how_much(head: Headline, info: MetricInfo, report: Report) -> Answer:
    question = "By how much?"
    lines: list[str] = []
    for name, other, delta in (
        ("the baseline", head.baseline, head.over_baseline),
        ("the second", head.second, head.over_second),
    ):
        if delta is not None and not (name == "the second" and other == head.baseline and lines):
            lines.append(f"{_difference(delta, info)} {'over' if info.is_higher_better else 'than'} {name}, {other}.")
    if head.tied:
        return Answer(question, "Not at all: the best are equal", tuple(lines))
    if head.baseline == head.best:
        lines.insert(0, "The best is the baseline itself.")
    if head.baseline is None:
        lines.append("The baseline has no number here." if report.baseline else "No baseline is among these arms.")
    shown = head.over_baseline or head.over_second
    return Answer(question, amount_better(shown.value, info) if shown else "Nothing to compare", tuple(lines))


def _difference(delta: Estimate, info: MetricInfo) -> str:
    """With its interval; of what is better when lower, how much lower, so that more is better everywhere."""
    ends = interval(delta, is_share=info.is_share, is_difference=info.is_higher_better)  # "lower [+0.1" reads as higher
    return f"{amount_better(delta.value, info)} {ends}".strip()


def _noise(report: Report, head: Headline, info: MetricInfo) -> Answer:
    others = [("the baseline", head.baseline, head.over_baseline)]
    others += [("the second", head.second, head.over_second)] if head.second != head.baseline else []
    found = {name: is_noise(delta) for name, row, delta in others if delta is not None and row not in head.tied}
    lines = [f"{name[0].upper()}{name[1:]}: {text}." for name, (_, text) in found.items()]
    if head.evaluated > 1 and not head.tied:
        lines.append(_about_choice(head))
    lines.append(_about_seeds(report, head, info))
    verdicts = [verdict for verdict, _ in found.values()]
    short = "Nothing to compare"
    if verdicts:
        is_sure = set(verdicts) == {"no"} and (head.best_ratio or 0.0) >= LEVEL
        short = "No" if is_sure else "Perhaps" if "no" not in verdicts else "In part"
        single = _kinds_with_one_seed(report, head)
        if is_sure and not info.seed_degrees:
            short = "Not of items; of seeds not known"
        elif is_sure and single:
            short = f"No, as far as one seed of {' and of '.join(single)} can tell"
    return Answer("Is it noise?", short, tuple(lines))


def _about_choice(head: Headline) -> str:
    """Of how many the best was chosen: the best of many is partly the luckiest."""
    if head.best_ratio is None:
        return f"{head.best} is the best of {head.evaluated}; how often it would be again cannot be drawn."
    alone = "" if head.drawn == "items and seeds" else " alone"
    return (
        f"{head.best} is the best of {head.evaluated} in {ratio(head.best_ratio)} of {DRAWS:,} draws of "
        f"{head.drawn}{alone}; an interval is of one comparison, not of the best of all."
    )


def is_noise(delta: Estimate) -> tuple[str, str]:
    """Whether a difference may be noise (no, perhaps), and that in words."""
    if delta.low is None or delta.high is None:
        return "perhaps", "not known, for there is no interval"
    if delta.low > 0 or delta.high < 0:
        return "no", "unlikely to be noise, the interval of the difference excludes 0"
    return "perhaps", "it may be noise, the interval of the difference holds 0"


def _about_seeds(report: Report, head: Headline, info: MetricInfo) -> str:
    row = next(row for row in report.rows if (row.stage, row.label) == (head.stage, head.best))
    cell = next(cell for cell in row.cells if (cell.suite, cell.metric) == (head.suite, head.metric))
    items = plural(info.items or 0, "item") if "items" in cell.drawn else "items not kept"
    if not info.seed_degrees:
        return f"{seeds(*head.seeds)}, {items}: nothing is known of other seeds, which may say otherwise."
    own_unit = " points" if info.is_share else f" {info.unit}".rstrip()
    spread = f"{value(info.seed_deviation, is_share=info.is_share)}{own_unit}"
    single = _kinds_with_one_seed(report, head)
    has = "has" if len(single) == 1 else "have"
    once = heading(" and ".join(single))
    note = f" {once} {has} 1 seed: what another would change is not in it." if single else ""
    shared = ""
    if info.paired_deviation is not None:
        apart = f"{value(info.paired_deviation, is_share=info.is_share)}{own_unit}"
        shared = (
            f" Arms share stages: without their luck, as in a difference, it lies {apart} from it "
            f"({plural(info.paired_degrees, 'degree')})."
        )
    return (
        f"{seeds(*head.seeds)}, {items}; one seed lies {spread} from its arm's mean (standard deviation, "
        f"{plural(info.seed_degrees, 'degree')} of freedom).{shared}{note}"
    )


def _kinds_with_one_seed(report: Report, head: Headline) -> list[str]:
    """The kinds of stages behind the best row that were run once, as people call them."""
    row = next(row for row in report.rows if (row.stage, row.label) == (head.stage, head.best))
    return [STAGE_NAMES[kind] for kind, number in row.seeds_by_stage.items() if number == 1]


_FEW_ARMS = 4
"""Whose reading is all shown in short."""


def _read(report: Report, head: Headline | None) -> Answer:
    """Of few arms all; of many the best, the baseline and the second. The table has all."""
    question = "What did each read?"
    sources = {source.source for arm in report.readings for stage in arm.stages for source in stage.sources}
    if not sources:
        return Answer(question, "Nothing yet", ("No stage has begun.",))
    rows = {(row.stage, row.label): row for row in report.rows}
    names = [head.best, head.baseline, head.second] if head is not None else []
    arms = [rows[head.stage, name].arms[0] for name in names if head is not None and name is not None]
    arms += [report.baseline] if report.baseline is not None and head is None else []
    is_all = len(report.readings) <= _FEW_ARMS
    shown = [one for one in report.readings if is_all or one.arm in arms]
    lines = [f"{one.arm}: {'; '.join(_of_kinds(one)) or 'nothing yet'}." for one in shown]
    short = f"{plural(len(sources), 'source')}, {plural(len(report.readings), 'arm')}"
    return Answer(question, short, (*lines, *([] if is_all else ["The others stand below: What each arm read."])))


def _of_kinds(arm: ArmReading) -> list[str]:
    found = []
    for kind, name in STAGE_NAMES.items():
        by_source: dict[str, int] = {}
        for stage in (stage for stage in arm.stages if stage.stage == kind):
            for source in stage.sources:
                by_source[source.source] = by_source.get(source.source, 0) + source.tokens
        if total := sum(by_source.values()):
            parts = ", ".join(f"{source} {ratio(tokens / total)}" for source, tokens in by_source.items())
            found.append(f"{count(total)} tokens in {name} ({parts})")
    return found


def _cost(report: Report) -> Answer:
    total = report.costs.total
    spent = f"{count(total.tokens)} tokens and {count(total.flops)} FLOPs. " if total.tokens else ""
    lines = [
        f"{spent}Planned: {count(total.planned_tokens)} tokens and {count(total.planned_flops)} FLOPs.",
        f"{total.finished} of {plural(total.stages, 'stage')} finished; each counted once, whichever arms share it.",
    ]
    if report.costs.unread:
        lines.append(
            f"More: the steps of {plural(report.costs.unread, 'stage')} could not all be read (see Provenance)."
        )
    if total.planned_gpu_seconds is not None:
        lines.append(f"Planned time on GPUs: {duration(total.planned_gpu_seconds)}.")
    short = f"{duration(total.process_seconds)} of {report.costs.processor} time" if total.tokens else "Nothing yet"
    return Answer("What did it cost?", short, tuple(lines))
