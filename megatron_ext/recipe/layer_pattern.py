"""The hybrid layer pattern: one symbol a layer, `|` where the pipeline is cut.

The alphabet is a part of Megatron-Core's (Source: megatron-core 0.19,
`models/hybrid/hybrid_layer_allocation.py`, `Symbols`); the other symbols of core (`G D + E /`)
name layers that this project has no specs for, so they are refused here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

MAMBA = "M"
ATTENTION = "*"
MLP = "-"
CUT = "|"

LAYER_NAMES = {MAMBA: "Mamba-2", ATTENTION: "attention", MLP: "MLP"}


@dataclass(frozen=True)
class LayerPattern:
    """A checked pattern.

    Attributes:
        symbols: One symbol a layer, without cuts.
        cuts: For each `|`, the number of layers before it; rising, in (0, num_layers).
    """

    symbols: str
    cuts: tuple[int, ...] = ()

    @property
    def num_layers(self) -> int:
        """Layers of the whole model."""
        return len(self.symbols)

    @property
    def segments(self) -> tuple[str, ...]:
        """The symbols of each pipeline stage, first stage first.

        >>> parse_pattern("M-|M*-").segments
        ('M-', 'M*-')
        """
        edges = (0, *self.cuts, self.num_layers)
        return tuple(self.symbols[start:end] for start, end in pairwise(edges))

    def count(self, symbol: str) -> int:
        """How many layers are of one kind."""
        return self.symbols.count(symbol)

    def with_cuts(self, cuts: tuple[int, ...]) -> LayerPattern:
        """The same layers, cut elsewhere."""
        return LayerPattern(self.symbols, cuts)

    def __str__(self) -> str:
        """The pattern as Megatron-Core reads it, with `|` at the cuts."""
        return CUT.join(self.segments)


def parse_pattern(pattern: str) -> LayerPattern:
    """Reads a hybrid layer pattern.

    Args:
        pattern: For example `M-M*-|M-M-`.

    Returns:
        The layers and the cuts.

    Raises:
        ValueError: A symbol without a layer, no layer at all, or a pipeline stage without one;
            the message holds the pattern and a caret under the place.
    """
    symbols: list[str] = []
    cuts: list[int] = []
    for position, symbol in enumerate(pattern):
        if symbol in LAYER_NAMES:
            symbols.append(symbol)
        elif symbol == CUT:
            if len(symbols) == (cuts[-1] if cuts else 0):
                raise ValueError(_pointed(pattern, position, "this pipeline stage has no layer before its '|'"))
            cuts.append(len(symbols))
        else:
            raise ValueError(_pointed(pattern, position, f"{symbol!r} is no layer symbol; {_alphabet()}"))
    if not symbols:
        raise ValueError(f"the pattern has no layers; {_alphabet()}")
    if cuts and cuts[-1] == len(symbols):
        raise ValueError(_pointed(pattern, len(pattern) - 1, "the pipeline stage after this '|' has no layer"))
    return LayerPattern("".join(symbols), tuple(cuts))


def _alphabet() -> str:
    layers = ", ".join(f"{symbol} {name}" for symbol, name in LAYER_NAMES.items())
    return f"use {layers}, | pipeline cut"


def _pointed(pattern: str, position: int, what: str) -> str:
    return f"{what}\n    {pattern}\n    {' ' * position}^"
