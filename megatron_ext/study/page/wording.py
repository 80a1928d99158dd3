"""Numbers as people read them: shares as percent, their differences as points, large counts short."""

from __future__ import annotations

from collections.abc import Iterable

from data_tools.quantities import format_count
from megatron_ext.recipe.study_schema import STAGE_NAMES
from megatron_ext.study.report.numbers import Comparison, Drawn, Estimate, MetricInfo, Verdict

MINUS = "−"


def part_name(label: str) -> str:
    """A label in tables of costs: kinds of stages by their name, arms and `all` as they are."""
    return next((name for kind, name in STAGE_NAMES.items() if kind == label), label)


def heading(text: str) -> str:
    """A text with a large first letter, and the others as they are.

    >>> heading("fine-tuning"), heading("RL")
    ('Fine-tuning', 'RL')
    """
    return text[:1].upper() + text[1:]


def value(number: float | None, *, is_share: bool) -> str:
    """A number of a table: a share as percent without the sign.

    >>> value(0.509, is_share=True), value(2.34567, is_share=False), value(None, is_share=True)
    ('50.9', '2.346', '–')
    """
    if number is None:
        return "–"
    digits = f"{number:.3f}" if number == 0 or abs(number) >= 0.001 else f"{number:.1g}"
    return (f"{100 * number:.1f}" if is_share else digits).replace("-", MINUS)


def signed(number: float | None, *, is_share: bool) -> str:
    """A difference, with its sign.

    >>> signed(0.02, is_share=True), signed(-0.0004, is_share=True)
    ('+2.0', '0.0')
    """
    text = value(number, is_share=is_share)
    if number is None or not any(digit in text for digit in "123456789"):
        return text.removeprefix(MINUS)
    return text if text.startswith(MINUS) else f"+{text}"


def interval(estimate: Estimate | None, *, is_share: bool, is_difference: bool = False) -> str:
    """The ends of an interval; "" where it has none.

    >>> interval(Estimate(value=0.5, low=0.4, high=0.612), is_share=True)
    '[40.0, 61.2]'
    """
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    show = signed if is_difference else value
    return f"[{show(estimate.low, is_share=is_share)}, {show(estimate.high, is_share=is_share)}]"


def printed(points_of_paper: float, *, is_difference: bool = False) -> str:
    """A number of the paper, in points, with the two decimals that it prints.

    >>> printed(52.7), printed(8.35, is_difference=True), printed(-0.02, is_difference=True)
    ('52.70', '+8.35', '−0.02')
    """
    return f"{points_of_paper:{'+' if is_difference else ''}.2f}".replace("-", MINUS)


def points(*, is_share: bool) -> str:
    """Of a difference."""
    return " points" if is_share else ""


def badge(verdict: Verdict, drawn: Iterable[Drawn]) -> str:
    """A verdict; where items alone were drawn it says so, for other seeds may say otherwise.

    >>> badge("shows", ["items and seeds"]), badge("shows", ["items and seeds", "items"]), badge("not run", ["items"])
    ('shows', 'shows, of items alone', 'not run')
    """
    is_told = verdict in ("shows", "shows the opposite")
    return f"{verdict}, of items alone" if is_told and "items" in drawn else verdict


def beside_paper(one: Comparison) -> str:
    """Where the paper's number lies outside of this study's interval, that; else ""."""
    if one.paper is None or not one.is_share or one.delta is None or one.delta.low is None or one.delta.high is None:
        return ""
    is_inside = one.delta.low <= one.paper.delta / 100 <= one.delta.high
    return "" if is_inside else "outside of this study's interval"


def unit(info: MetricInfo) -> str:
    """Of a column's values, for its heading; "" where it has none, or nothing has been measured."""
    return "%" if info.unit == "share" else info.unit


def amount(number: float, info: MetricInfo) -> str:
    """A value with its unit."""
    return f"{value(number, is_share=info.is_share)} {unit(info)}".strip()


def amount_better(number: float, info: MetricInfo) -> str:
    """A difference with its unit; of what is better when lower, by how much it is lower."""
    if info.is_higher_better:
        return f"{signed(number, is_share=info.is_share)}{points(is_share=info.is_share)}"
    side = "lower" if number >= 0 else "higher"
    return f"{value(abs(number), is_share=False)} {unit(info)}".strip() + f" {side}"


def count(number: float | None) -> str:
    """A count of tokens or operations.

    >>> count(61_234_567), count(None), count(3.2e18)
    ('61.2M', '–', '3.20e18')
    """
    if number is None:
        return "–"
    if number >= 1e15:
        return f"{number:.2e}".replace("e+", "e")
    return format_count(round(number))


def duration(seconds: float | None) -> str:
    """A time in the two largest units that it has.

    >>> duration(5.25), duration(3_725), duration(200_000), duration(None)
    ('5.2 s', '1 h 2 min', '2 d 7 h', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def ratio(number: float | None) -> str:
    """A share as percent, with its sign.

    >>> ratio(0.9985), ratio(0.9999), ratio(1.0), ratio(0.42)
    ('99.9 %', 'over 99.9 %', '100 %', '42 %')
    """
    if number is None:
        return "–"
    percent = 100 * number
    if 99.9 < percent < 100:
        return "over 99.9 %"
    return f"{percent:.1f} %" if 99 < percent < 100 or 0 < percent < 1 else f"{percent:.0f} %"


def passes(number: float) -> str:
    """Over a source.

    >>> passes(0.00252), passes(6.667), passes(1234.5)
    ('0.00252', '6.67', '1,234')
    """
    return f"{number:.3g}" if number < 1_000 else f"{number:,.0f}"


def moment(time: str) -> str:
    """A time in UTC to the minute.

    >>> moment("2026-01-31T12:34:56+00:00")
    '2026-01-31 12:34 UTC'
    """
    return f"{time[:16].replace('T', ' ')} UTC"


def plural(number: int, one: str, many: str | None = None) -> str:
    """A count with its word.

    >>> plural(1, "seed"), plural(2, "seed"), plural(2, "study", "studies")
    ('1 seed', '2 seeds', '2 studies')
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def seeds(fewest: int, most: int) -> str:
    """How many seeds rows have.

    >>> seeds(2, 2), seeds(1, 2)
    ('2 seeds', '1 to 2 seeds')
    """
    return plural(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
