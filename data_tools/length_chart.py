"""How long documents are: numbers, a chart in text, a chart in PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_tools.atomic_files import write_atomically
from data_tools.errors import SetupError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lengths = npt.NDArray[np.int64]
Edges = npt.NDArray[np.floating[Any]]

_BAR_CHARACTERS = 40
_BINS_OF_A_DOUBLING = 4
_COLOURS = {"tokens": "#7d8b99", "trained tokens": "#1b7f5c"}


@dataclass(frozen=True)
class LengthFacts:
    """Some lengths in numbers."""

    shortest: int
    median: float
    mean: float
    longest: int

    @classmethod
    def of(cls, lengths: Lengths) -> LengthFacts:
        """Of some lengths; of none all are 0."""
        if not len(lengths):
            return cls(0, 0.0, 0.0, 0)
        return cls(int(lengths.min()), float(np.median(lengths)), float(lengths.mean()), int(lengths.max()))

    def __str__(self) -> str:
        return f"median {self.median:,.0f}, mean {self.mean:,.1f}, {self.shortest:,} to {self.longest:,}"


@dataclass(frozen=True)
class Bin:
    """Documents of `first` to `last` tokens."""

    first: int
    last: int
    documents: int
    tokens: int


def doublings(lengths: Lengths) -> list[Bin]:
    """Documents by length, a bin for each doubling that has one, and one for those without a token.

    >>> doublings(np.array([0, 1, 5, 6, 7, 9]))[2]
    Bin(first=4, last=7, documents=3, tokens=18)
    """
    number = np.frexp(lengths.astype(np.float64))[1]  # 0: no token; n: 2^(n-1) to 2^n - 1 tokens
    documents = np.bincount(number, minlength=1)
    tokens = np.bincount(number, weights=lengths, minlength=1)
    return [
        Bin((1 << n) // 2, (1 << n) - 1, int(documents[n]), int(tokens[n])) for n in map(int, np.flatnonzero(documents))
    ]


def text_chart(lengths: Lengths, name: str, *, of: str = "documents") -> list[str]:
    """Documents by length, a line for each doubling.

    Args:
        lengths: [documents] of each.
        name: What is counted: tokens.
        of: What has these lengths.

    >>> for line in text_chart(np.array([1, 5, 6, 7, 9]), "tokens"): print(line)
    tokens  documents  of all tokens
     1 - 1          1          3.6 %  #############
     4 - 7          3         64.3 %  ########################################
    8 - 15          1         32.1 %  #############
    """
    bins = doublings(lengths)
    ranges = [f"{one.first:,} - {one.last:,}" for one in bins]
    width = max(len(name), *map(len, ranges)) if bins else len(name)
    lines = [f"{name:>{width}} {of:>10}  of all tokens"]
    most, total = max((one.documents for one in bins), default=1), max(1, int(lengths.sum()))
    for one, written in zip(bins, ranges, strict=True):
        bar = "#" * max(1, round(_BAR_CHARACTERS * one.documents / most))
        lines.append(f"{written:>{width}} {one.documents:10,} {100 * one.tokens / total:12.1f} %  {bar}")
    return lines


def write_png(path: Path, lengths: Mapping[str, Lengths], *, title: str, of: str = "documents") -> None:
    """Draws documents by length, and below how many of all tokens are in documents up to a length.

    Args:
        path: The file.
        lengths: [documents] of each, by what is counted: `tokens`, `trained tokens`.
        title: Stands above it.
        of: What has these lengths.

    Raises:
        UsageError: If the name does not end in .png, or there is nothing to draw.
        SetupError: If matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--png: {path} does not end in .png; a chart is written there, whatever stands there now")
    drawn = {name: values[values > 0] for name, values in lengths.items()}
    if not all(map(len, drawn.values())):
        raise UsageError("--png: there is no document with a token to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SetupError(
            "matplotlib is not installed, and --png draws with it: pip install 'megatron-ext[plots]'"
        ) from None
    figure = Figure(figsize=(9, 6.5), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    every = np.concatenate(list(drawn.values()))
    edges = _edges(every)
    for name, values in drawn.items():
        _draw_counts(above, name, values, edges)
        _draw_sums(below, name, values)
    _label(above, below, of=of, is_log=_spread_wide(every))
    below.set_xlim(edges[0], edges[-1])
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def _edges(lengths: Lengths) -> Edges:
    """Edges of bins between whole lengths: equal ones where lengths differ little, else some to a doubling."""
    shortest, longest = int(lengths.min()), int(lengths.max())
    if not _spread_wide(lengths):
        step = max(1, -(-(longest - shortest + 1) // 40))
        return np.arange(shortest, longest + step + 1, step) - 0.5
    first, last = (int(np.floor(_BINS_OF_A_DOUBLING * np.log2(length))) for length in (shortest, longest))
    powers = np.arange(first, last + 2) / _BINS_OF_A_DOUBLING
    return np.unique(np.ceil(2.0**powers)) - 0.5


def _spread_wide(lengths: Lengths) -> bool:
    return int(lengths.max()) > 4 * int(lengths.min())


def _draw_counts(axes: Axes, name: str, lengths: Lengths, edges: Edges) -> None:
    facts = LengthFacts.of(lengths)
    colour = _COLOURS[name]
    label = f"{name}: median {facts.median:,.0f}, mean {facts.mean:,.0f}, max {facts.longest:,}"
    style: dict[str, Any] = {"color": colour, "alpha": 0.5}
    if name != "tokens":  # an outline, so that it hides nothing of the bars behind it
        style = {"histtype": "step", "edgecolor": colour, "linewidth": 2}
    axes.hist(lengths, bins=edges.tolist(), label=label, **style)
    axes.axvline(facts.median, color=colour, linewidth=1.6)
    axes.axvline(facts.mean, color=colour, linewidth=1.6, linestyle="--")


def _draw_sums(axes: Axes, name: str, lengths: Lengths) -> None:
    ordered = np.sort(lengths)
    sums = np.cumsum(ordered)
    shown = np.unique(np.linspace(0, len(ordered) - 1, 2_000).astype(np.int64))  # no more than a screen can show
    axes.step(ordered[shown], 100 * sums[shown] / sums[-1], where="post", color=_COLOURS[name], linewidth=1.8)


def _label(above: Axes, below: Axes, *, of: str, is_log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    above.set_ylabel(of)
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    above.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        frameon=False,
        fontsize=9,
        title="solid: median, dashed: mean",
        alignment="left",
        borderaxespad=0.2,
    )
    below.set_ylabel(f"% of tokens in\n{of} up to here")
    below.set_ylim(0, 103)
    below.set_xlabel("length in tokens")
    if is_log:
        below.set_xscale("log", base=2)
        below.xaxis.set_major_locator(LogLocator(base=2, numticks=14))
        below.xaxis.set_minor_formatter(NullFormatter())
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for axes in (above, below):
        axes.grid(axis="y", color="#e3e7eb")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
