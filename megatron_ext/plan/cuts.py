"""Where a layer pattern is cut into pipeline stages."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import accumulate

from megatron_ext.plan.sizes import layer_parameters, padded_vocab_size
from megatron_ext.recipe.layer_pattern import LayerPattern, parse_pattern
from megatron_ext.recipe.schema import ModelRecipe


@functools.cache
def cut_by_parameters(model: ModelRecipe, num_stages: int) -> LayerPattern:
    """Cuts a model so that the stage with most parameters has as few as possible."""
    pattern = parse_pattern(model.hybrid_layer_pattern)
    one = layer_parameters(model)
    vocabulary = padded_vocab_size(model.vocab_size) * model.hidden_size
    # The output layer costs its rows on the last stage whether it is tied (a copy lives there) or not.
    weights = [one[symbol] for symbol in pattern.symbols]
    return place_cuts(pattern, num_stages, weights, first=vocabulary, last=vocabulary + model.hidden_size)


def place_cuts(
    pattern: LayerPattern, num_stages: int, weights: Sequence[int], *, first: int, last: int
) -> LayerPattern:
    """Cuts a pattern so that the heaviest pipeline stage is as light as possible.

    Dynamic programming over stages. Among the best beginnings the one with the least sum of squares goes
    on, then the one that cuts earliest: a recipe gives the same cuts everywhere.

    Args:
        pattern: Its own cuts are not looked at.
        num_stages: Pipeline stages, at most the number of layers.
        weights: One for each layer.
        first: Weight of what stands before the first layer (the embedding).
        last: Weight of what stands behind the last layer (final norm and output).

    Returns:
        The pattern with `num_stages - 1` cuts; no stage is empty.
    """
    num_layers = pattern.num_layers
    assert 1 <= num_stages <= num_layers, f"{num_stages} stages for {num_layers} layers"
    loads = list(weights)
    loads[0] += first
    loads[-1] += last
    before = [0, *accumulate(loads)]
    # By number of layers that are placed: heaviest stage, sum of squares, ends of the stages.
    best: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for stage in range(1, num_stages + 1):
        longer: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for end in range(stage, num_layers - (num_stages - stage) + 1):
            longer[end] = min(
                (max(heaviest, before[end] - before[start]), squares + (before[end] - before[start]) ** 2, (*ends, end))
                for start, (heaviest, squares, ends) in best.items()
                if start < end
            )
        best = longer
    return pattern.with_cuts(best[num_layers][2][:-1])
