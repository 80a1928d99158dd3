"""The report as Markdown: the same numbers, for a discussion or a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from megatron_ext.recipe.study_schema import STAGE_NAMES
from megatron_ext.study.page.answers import answers_of
from megatron_ext.study.page.views import Table, read_bars, rows_by_status, tables_of
from megatron_ext.study.page.wording import (
    badge,
    beside_paper,
    count,
    duration,
    interval,
    moment,
    part_name,
    plural,
    points,
    printed,
    seeds,
    signed,
    unit,
    value,
)
from megatron_ext.study.report.content import CostSum, Report
from megatron_ext.study.report.numbers import Cell, Comparison, MetricInfo

_SPECIAL = str.maketrans({one: f"\\{one}" for one in r"\`*_{}[]<>#|"})


def page_markdown(report: Report) -> str:
    """The report; texts from elsewhere are escaped."""
    sections = [
        [f"# Study {plain(report.study)}", plain(report.note)],
        [f"## {answer.question} {plain(answer.short)}\n\n{_list(answer.lines)}" for answer in answers_of(report)],
        ["## Findings", *_findings(report)],
        ["## Results", *(part for table in tables_of(report) for part in _results(table))],
        ["## What each arm read", _reading(report)],
        ["## Was a benchmark trained on?", _contamination(report)],
        ["## What it cost", *_costs(report)],
        ["## Not finished", _missing(report)],
        ["## Provenance", _list(_provenance(report))],
    ]
    return "\n\n".join(part for section in sections for part in section if part) + "\n"


def plain(text: str) -> str:
    r"""A text that Markdown shows as it is, on one line.

    >>> plain("a | b")
    'a \\| b'
    """
    return " ".join(text.translate(_SPECIAL).split())


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def _grid(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A table; columns from `numbers_from` on are numbers, to the right."""
    rule = ["---" if at < numbers_from else "---:" for at in range(len(columns))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows))


def _findings(report: Report) -> list[str]:
    left_out = f"Left out, for not all their arms are here: {plain(', '.join(report.findings_left_out))}."
    if not report.findings:
        return [left_out if report.findings_left_out else "The study names none."]
    rows = []
    for finding in report.findings:
        for one in finding.comparisons:
            rows.append(
                [plain(finding.name), _what(one), *_numbers(one), badge(one.verdict, [one.drawn]), plain(one.reason)]
            )
    columns = ("Finding", "Comparison", "This study", "Paper", "Verdict", "Why")
    verdicts = [badge(one.verdict, (part.drawn for part in one.comparisons)) for one in report.findings]
    says = _list(
        f"{one.name}: {one.says} {verdict.capitalize()}."
        for one, verdict in zip(report.findings, verdicts, strict=True)
    )
    notes = f"What to know of these numbers:\n\n{_list(report.findings_notes)}" if report.findings_notes else ""
    more = left_out if report.findings_left_out else ""
    return [says, _grid(columns, rows, numbers_from=9), more, notes, _list(report.differences)]


def _what(one: Comparison) -> str:
    word = "as good as" if one.expect == "equal" else "over"
    groups = (", ".join(arms) + (" (mean)" if len(arms) > 1 else "") for arms in (one.better, one.than))
    return plain(f" {word} ".join(groups) + f", {one.metric} after {STAGE_NAMES[one.stage]}")


def _numbers(one: Comparison) -> tuple[str, str]:
    own = "not run"
    if one.delta is not None:
        ends = interval(one.delta, is_share=one.is_share, is_difference=True)
        own = f"{signed(one.delta.value, is_share=one.is_share)}{points(is_share=one.is_share)} {ends}".strip()
        own += "" if one.is_share else f" {one.unit}, + is better".replace(" ,", ",")
        own += f" ({seeds(*one.seeds)})"
    paper = f"{printed(one.paper.delta, is_difference=True)} points ({one.paper.source})" if one.paper else "–"
    return plain(own), plain(", ".join(part for part in (paper, beside_paper(one)) if part))


def _results(table: Table) -> list[str]:
    columns = ["Arm", "Seeds", *(plain(_heading(column)) for column in table.columns)]
    rows = []
    for row, cells in zip(table.rows, table.cells, strict=True):
        name = plain(row.label) + (" (baseline)" if row.is_baseline else "")
        shown = [_cell(cell, column) for cell, column in zip(cells, table.columns, strict=True)]
        rows.append([name, f"{row.seeds_run} of {row.seeds_planned}", *shown])
    heading = f"### After {STAGE_NAMES[table.stage]}, suite {plain(table.suite)}"
    about = f"Behind Δ the difference to {plain(table.baseline)}, of shares in points" if table.baseline else ""
    if table.baseline and any(not column.is_higher_better for column in table.columns):
        about += "; where lower is better it is turned round, so that + is better everywhere"
    about = f"{about or 'There is no baseline here'}. Bold: the best."
    names = [f"{row.label}: {', '.join(row.arms)}" for row in table.rows if len(row.arms) > 1]
    return [heading, about, _grid(columns, rows), _list(names)]


def _heading(column: MetricInfo) -> str:
    parts = [column.name, unit(column), "" if column.is_higher_better else "lower is better"]
    return ", ".join(part for part in parts if part)


def _cell(cell: Cell, column: MetricInfo) -> str:
    if cell.estimate is None:
        return cell.state
    share = column.is_share
    number = value(cell.estimate.value, is_share=share)
    parts = [f"**{number}**" if cell.is_best else number, plain(interval(cell.estimate, is_share=share))]
    if cell.delta is not None:
        ends = interval(cell.delta, is_share=share, is_difference=True)
        parts.append(f"Δ {signed(cell.delta.value, is_share=share)} {plain(ends)}".strip())
    parts += ["overlaps what was trained on"] if cell.contamination == "overlaps" else []
    return " ".join(part for part in parts if part)


def _reading(report: Report) -> str:
    bars, _ = read_bars(report)
    rows = []
    for reading in report.readings:
        cells = []
        for kind in STAGE_NAMES:
            bar = next((one for one in bars[reading.arm] if one.stage == kind), None)
            parts = ", ".join(f"{source} {percent:.0f} %" for source, _, percent in bar.parts) if bar else ""
            cells.append("–" if bar is None else plain(f"{count(bar.tokens)}: {parts}") if bar.tokens else "not run")
        rows.append([plain(reading.arm), *cells])
    return _grid(["Arm", *STAGE_NAMES.values()], rows, numbers_from=9)


def _contamination(report: Report) -> str:
    if not report.contamination:
        return "not run: nothing has been evaluated."
    rows = []
    for task in report.contamination:
        found = "; ".join(f"{status}: {', '.join(labels)}" for status, labels in rows_by_status(task).items())
        rows.append([plain(task.task), STAGE_NAMES[task.stage], plain(found)])
    return _grid(("Task", "after", "Status"), rows, numbers_from=9)


def _costs(report: Report) -> list[str]:
    costs = report.costs
    time = f"{report.costs.processor} time"
    columns = ("Part", "Stages", "Tokens", "planned", "FLOPs", "planned", "Training", "Evaluation", time)
    about = "Of the study and of its kinds of stages each stage once; of an arm all its stages, shared ones in full."
    about += " Times are sums over stages: what ran at once counts twice, so the clock may have shown less."
    if any(one.stage == "rl" for one in costs.stages):
        about += " Tokens of RL are those of its updates, padding of rows among them; planned: answers at their limit."
    rows = [_cost_row(one) for one in (costs.total, *costs.kinds, *costs.arms)]
    return [about, _grid(columns, rows)]


def _cost_row(one: CostSum) -> list[str]:
    return [
        plain(part_name(one.label)),
        f"{one.finished} of {one.stages}",
        *(count(number) for number in (one.tokens, one.planned_tokens, one.flops, one.planned_flops)),
        *(duration(number) for number in (one.seconds, one.evaluation_seconds, one.process_seconds)),
    ]


def _missing(report: Report) -> str:
    if not report.missing:
        return "Nothing is missing: every stage and every evaluation has finished."
    rows = [
        [plain(text) for text in (one.what, one.state, one.reason, one.log or "–", ", ".join(one.arms))]
        for one in report.missing
    ]
    return _grid(("What", "State", "Reason", "Log", "Arms"), rows, numbers_from=9)


def _provenance(report: Report) -> list[str]:
    one = report.provenance
    dates = sorted(one.stage_dates.values())
    when = f", from {moment(dates[0])} to {moment(dates[-1])}" if dates else ""
    return [
        f"made {one.created} by {one.version}: {one.command}",
        f"study {one.study_file}, run root {one.run_root}, {plural(len(one.stage_dates), 'finished stage')}{when}",
        f"trained by {'; '.join(dict.fromkeys(one.code.values())) or 'code that was not recorded'}",
        f"trained on {'; '.join(one.hardware) or 'hardware that was not recorded'}",
        f"engines of evaluations: {'; '.join(one.engines) or 'none'}",
        *(f"not known: {plain(text)}" for text in one.unknown),
    ]
