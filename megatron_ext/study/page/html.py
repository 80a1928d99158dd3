"""The report as one page that needs nothing else: style, script and charts stand in it, and nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from megatron_ext.recipe.study_schema import STAGE_NAMES
from megatron_ext.study.page import wording
from megatron_ext.study.page.answers import answers_of, main_headline
from megatron_ext.study.page.charts import stage_graph
from megatron_ext.study.page.views import (
    bar_panels,
    contamination_counts,
    curve_views,
    missing_counts,
    read_bars,
    rows_by_status,
    tables_of,
)
from megatron_ext.study.report.bootstrap import DRAWS
from megatron_ext.study.report.content import Report

_FILTERS = "value signed interval count duration plural part_name moment printed heading unit passes badge beside_paper"
"""Functions of `wording` that templates call, by name."""

TEMPLATES = Path(__file__).parent / "templates"


def page_html(report: Report) -> str:
    """The page.

    Every text of the report is escaped, and the page's content policy lets no script run but its own, by its hash, and
    nothing be loaded from anywhere.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(wording, name) for name in _FILTERS.split()}
    script = (TEMPLATES / "report.js").read_text()
    bars, sources = read_bars(report)
    tables = tables_of(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        style=(TEMPLATES / "report.css").read_text(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        answers=answers_of(report),
        head=main_headline(report),
        tables=tables,
        panels={stage: bar_panels(report, stage) for stage in dict.fromkeys(table.stage for table in tables)},
        evaluated={one.stage for one in report.headlines if one.best is not None},
        curves=curve_views(report),
        read_bars=bars,
        sources=sources,
        graph=stage_graph(report.graph),
        stage_names=STAGE_NAMES,
        processor=report.costs.processor,
        resamples=DRAWS,
        points=wording.points,
        forest=_forest(report),
        contamination_counts=contamination_counts(report),
        missing_counts=missing_counts(report),
        task_statuses=rows_by_status,
    )


def _forest(report: Report) -> Callable[[float, bool], float]:
    """Where a difference stands between the ends of a finding's bar, in percent; 0 is in the middle."""
    widest = {True: 1e-9, False: 1e-9}
    for one in (one for finding in report.findings for one in finding.comparisons):
        ends = (
            [abs(end) for end in (one.delta.low, one.delta.high, one.delta.value) if end is not None]
            if one.delta
            else []
        )
        ends += [abs(one.paper.delta) / 100] if one.paper and one.is_share else []
        widest[one.is_share] = max(widest[one.is_share], *ends, 0.0)
    return lambda number, is_share: round(50 + 48 * number / widest[is_share], 2)
