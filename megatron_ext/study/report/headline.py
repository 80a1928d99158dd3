"""A suite's main number in short: who is best, over whom, and by how much."""

from __future__ import annotations

from megatron_ext.study.report.numbers import Headline
from megatron_ext.study.report.table import EvaluatedSuite


def headline_of(suite: EvaluatedSuite) -> Headline:
    """A suite's main number in short."""
    main = next((one for one in suite.measured if one.info.is_main), None)
    if main is None or not (best := main.best_rows()):
        info = next((info for info in suite.unmeasured if info.is_main), None)
        name = main.info.name if main else info.name if info else ""
        return Headline(stage=suite.stage, suite=suite.suite, metric=name, best=None, rows=len(suite.rows))
    rows_found = [row for row, values in enumerate(main.values) if values]
    others = [row for row in rows_found if row != best[0]]
    sign = 1 if main.info.is_higher_better else -1
    second = max(others, key=lambda row: sign * (main.value(row) or 0.0), default=None)
    baseline = next((row for row in rows_found if suite.rows[row].is_baseline), None)
    seeds = [len(main.values[row]) for row in rows_found]
    return Headline(
        stage=suite.stage,
        suite=suite.suite,
        metric=main.info.name,
        chosen=suite.why_main(main.info),
        best=suite.rows[best[0]].label,
        tied=tuple(suite.rows[row].label for row in best) if len(best) > 1 else (),
        value=main.estimate(best[0]),
        baseline=suite.rows[baseline].label if baseline is not None else None,
        over_baseline=main.difference([best[0]], [baseline]) if baseline not in (None, best[0]) else None,
        second=suite.rows[second].label if second is not None else None,
        over_second=main.difference([best[0]], [second]) if second is not None else None,
        best_ratio=main.best_ratios().get(best[0]),
        drawn=main.drawn(rows_found),
        seeds=(min(seeds), max(seeds)),
        items=main.info.items,
        evaluated=len(rows_found),
        rows=len(suite.rows),
    )
