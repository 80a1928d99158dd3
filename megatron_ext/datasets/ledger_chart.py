"""What a chain of stages has read, drawn: tokens by source over training, and passes over each source.

Within a phase every source is less than one sample from its share, so a straight line between the ends of a
phase is what was read, to that sample.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError, SetupError, UsageError
from data_tools.quantities import format_count
from megatron_ext.datasets.ledger import LedgerRow, checkpoint_at
from megatron_ext.plan.stage_plan import StagePlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008), without black: told apart by the colour-blind too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_OTHERS = "#999999"


@dataclass(frozen=True)
class Stretch:
    """A part of training with one blend.

    Attributes:
        label: Stage and phase.
        rows: What it read.
    """

    label: str
    rows: tuple[LedgerRow, ...]


def stretches_of(rows: Sequence[LedgerRow], path: Path) -> list[Stretch]:
    """What was read, in order; of the stages before each phase where their stage.json is there, else their sum.

    Args:
        rows: `read_ledger` of `path`.
        path: A checkpoint or a stage's folder.

    Raises:
        DataError: A stage.json of theirs has no ledger.
    """
    checkpoint = checkpoint_at(path).resolve()
    plan = StagePlan.model_validate_json((checkpoint / "plan.json").read_bytes())
    before = [row for row in rows if row.phase == 0]
    files = (
        [checkpoint.parents[2] / stage.stage_id / "stage.json" for stage in plan.behind.chain] if plan.behind else []
    )
    if all(file.is_file() for file in files):
        ledgers = [_ledger_of_stage(file) for file in files]
        found = [stretch for number, ledger in enumerate(ledgers, 1) for stretch in _phases(ledger, f"stage {number}")]
    else:
        found = [Stretch("before", tuple(before))]
    return [*found, *_phases(rows, f"stage {len(files) + 1}")]


def _ledger_of_stage(file: Path) -> list[LedgerRow]:
    try:
        return [LedgerRow(**row) for row in json.loads(file.read_bytes())["ledger"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{file}: has no ledger that can be read here: damaged, or of another version. Restore it, or move it "
            "away; then the stages before are drawn as their sum"
        ) from None


def _phases(rows: Sequence[LedgerRow], stage: str) -> list[Stretch]:
    numbers = sorted({row.phase for row in rows if row.phase and row.read})
    return [
        Stretch(f"{stage}, phase {number}" if numbers[1:] else stage, tuple(row for row in rows if row.phase == number))
        for number in numbers
    ]


def draw_ledger(path: Path, stretches: Sequence[Stretch], *, title: str) -> None:
    """Writes a PNG.

    Args:
        path: The file.
        stretches: In order.
        title: Stands above it.

    Raises:
        UsageError: If the name does not end in .png, its folder is not there, or nothing was read.
        SetupError: If matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--png: {path} does not end in .png; a chart is written there, whatever stands there now")
    if not path.parent.is_dir():
        raise UsageError(f"--png: {path.parent}: no such folder; make it, or name a file in one that is there")
    rows = [row for stretch in stretches for row in stretch.rows]
    if not any(row.read for row in rows):
        raise UsageError("--png: nothing was read yet")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError:
        raise SetupError(
            "matplotlib is not installed, and --png draws with it: pip install 'megatron-ext[plots]'"
        ) from None
    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    colours = _colours(rows)
    ends = _running(stretches, list({row.data_id: None for row in rows}), "read")
    x = [sum(column) for column in zip(*ends.values(), strict=True)]
    _draw_tokens(above, x, ends, colours)
    passes = _running(stretches, list(colours), "epochs")
    for data_id, (name, colour) in colours.items():
        below.plot(x, passes[data_id], color=colour, linewidth=2, label=name)
    if max(line[-1] for line in passes.values()) > 0.5:  # else there is no repeat near, and the lines would lie flat
        below.axhline(1, color="black", linewidth=0.8, linestyle=":")
    below.set_ylabel("passes over the source")
    below.set_xlabel("tokens of the chain")
    below.set_ylim(bottom=0)
    _mark_stretches(above, below, x, [stretch.label for stretch in stretches])
    for axis in (above.yaxis, below.xaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: format_count(round(value))))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def _colours(rows: Sequence[LedgerRow]) -> dict[str, tuple[str, str]]:
    """Name and colour of the sources that read most, by data_id, in order of appearance; the others share one."""
    read: dict[str, int] = {}
    names = {row.data_id: row.source for row in rows}
    for row in rows:
        read[row.data_id] = read.get(row.data_id, 0) + row.read
    largest = sorted((data_id for data_id in read if read[data_id]), key=lambda data_id: -read[data_id])
    own = [data_id for data_id in read if data_id in largest[: len(_COLOURS)]]
    return {data_id: (names[data_id], colour) for data_id, colour in zip(own, _COLOURS, strict=False)}


def _running(stretches: Sequence[Stretch], data_ids: Sequence[str], field: str) -> dict[str, list[Any]]:
    """Of each source the sums of a field up to the beginning, and to the end of each stretch."""
    sums: dict[str, list[Any]] = {data_id: [0] for data_id in data_ids}
    for stretch in stretches:
        for data_id, line in sums.items():
            line.append(line[-1] + sum(getattr(row, field) for row in stretch.rows if row.data_id == data_id))
    return sums


def _draw_tokens(axes: Axes, x: Sequence[int], ends: dict[str, list[Any]], colours: dict[str, tuple[str, str]]) -> None:
    whole = x[-1]
    lines = {data_id: ends[data_id] for data_id in colours}
    names = [name for name, _ in colours.values()]
    shades = [colour for _, colour in colours.values()]
    if others := [line for data_id, line in ends.items() if data_id not in colours and line[-1]]:
        lines["others"] = [sum(column) for column in zip(*others, strict=True)]
        names.append(f"{len(others)} others")
        shades.append(_OTHERS)
    totals = [line[-1] for line in lines.values()]
    labels = [f"{name}: {format_count(total)}, {total / whole:.1%}" for name, total in zip(names, totals, strict=True)]
    axes.stackplot(x, *lines.values(), labels=labels, colors=shades, alpha=0.85, linewidth=0)
    axes.set_ylabel("tokens read")
    axes.set_xlim(0, whole)
    axes.set_ylim(0, whole)
    handles, said = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], said[::-1], loc="upper left", frameon=False, fontsize=9)  # as they are stacked


def _mark_stretches(above: Axes, below: Axes, x: Sequence[int], labels: Sequence[str]) -> None:
    if not labels[1:]:
        return
    for begin, end, label in zip(x, x[1:], labels, strict=False):
        if begin:
            for axes in (above, below):
                axes.axvline(begin, color="black", linewidth=0.8, linestyle="--")
        if end - begin > x[-1] / 12:  # a narrower one has no room for its name
            above.text((begin + end) / 2, 1.01, label, transform=above.get_xaxis_transform(), ha="center", fontsize=9)
