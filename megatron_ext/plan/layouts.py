"""Which layouts a model allows, and where its pipeline is cut.

Source of the rules: megatron-core 0.19, `transformer/transformer_config.py` (heads and groups),
`ssm/mamba_mixer.py` (Mamba heads and groups), `tensor_parallel/layers.py` (every split width must
divide). Core would also share one key/value head among several ranks; that is refused here, because
no test of this project covers it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from megatron_ext.plan.sizes import layer_parameters, padded_vocab_size
from megatron_ext.plan.stage_plan import LayoutPlan
from megatron_ext.recipe.layer_pattern import MAMBA, MLP, LayerPattern, parse_pattern
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Origin, Problems
from megatron_ext.recipe.rules import divisors, listed
from megatron_ext.recipe.schema import ModelRecipe, Recipe


def plan_layout(loaded: LoadedRecipe, problems: Problems, *, world_size: int | None = None) -> LayoutPlan:
    """Decides which rank does what.

    Args:
        loaded: What was asked.
        problems: Takes everything that is impossible; then the result is of no use.
        world_size: Processes of the run; None takes the fewest that the layout needs.
    """
    recipe, parallel = loaded.recipe, loaded.recipe.parallel
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    _check_tensor_split(loaded, problems)
    pattern = _cut_pattern(loaded, problems)
    world = tensor * pipeline if world_size is None else world_size
    data = _data_parallel_size(recipe, world, problems)
    if data is not None:
        _check_microbatches(loaded, data, problems)
    return LayoutPlan(
        world_size=world,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        context_parallel_size=parallel.context_parallel_size,
        data_parallel_size=data or 1,
        sequence_parallel=parallel.sequence_parallel,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        hybrid_layer_pattern=str(pattern),
        backend=recipe.training.backend,
    )


def split_widths(model: ModelRecipe) -> dict[str, int]:
    """Everything of a model that tensor parallelism divides, by the key that sets it."""
    pattern = parse_pattern(model.hybrid_layer_pattern)
    widths = {
        "num_attention_heads": model.num_attention_heads,  # core checks these two in a model without attention too
        "num_query_groups": model.num_query_groups,
        "padded vocab_size": padded_vocab_size(model.vocab_size),
    }
    if pattern.count(MAMBA):
        widths |= {"mamba_num_heads": model.mamba_num_heads, "mamba_num_groups": model.mamba_num_groups}
    if pattern.count(MLP):
        widths["ffn_hidden_size"] = model.ffn_hidden_size
    return widths


def legal_tensor_parallel_sizes(model: ModelRecipe) -> list[int]:
    """Every number of ranks that can share one layer."""
    return divisors(math.gcd(*split_widths(model).values()))


def place_cuts(
    pattern: LayerPattern, num_stages: int, weights: Sequence[int], *, first: int, last: int
) -> LayerPattern:
    """Cuts a pattern so that the heaviest pipeline stage is as light as possible.

    Among the best placements the one with the least sum of squares is taken, then the one that cuts
    earliest, so that a recipe gives the same cuts everywhere.

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

    def load(start: int, end: int) -> int:
        return before[end] - before[start]

    cuts = _best_cuts(num_layers, num_stages, lambda cost, start, end: max(cost, load(start, end)))
    bound = max(load(start, end) for start, end in pairwise((0, *cuts, num_layers)))

    def squares(cost: int, start: int, end: int) -> int | None:
        return cost + load(start, end) ** 2 if load(start, end) <= bound else None

    return pattern.with_cuts(_best_cuts(num_layers, num_stages, squares))


def _best_cuts(num_layers: int, num_stages: int, extend: Callable[[int, int, int], int | None]) -> tuple[int, ...]:
    """The cuts of least cost, the earliest of equal ones; by dynamic programming over stages.

    Args:
        num_layers: Layers to divide.
        num_stages: Stages to divide them into.
        extend: Cost of some stages and one more that holds layers [start, end); None forbids it.
    """
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}  # by number of layers: cost, ends of the stages
    for stage in range(1, num_stages + 1):
        longer: dict[int, tuple[int, tuple[int, ...]]] = {}
        for end in range(stage, num_layers - (num_stages - stage) + 1):
            options = [
                (cost, (*ends, end))
                for start, (so_far, ends) in best.items()
                if start < end and (cost := extend(so_far, start, end)) is not None
            ]
            if options:
                longer[end] = min(options)
        best = longer
    return best[num_layers][1][:-1]


def _check_tensor_split(loaded: LoadedRecipe, problems: Problems) -> None:
    recipe = loaded.recipe
    tensor = recipe.parallel.tensor_model_parallel_size
    broken = [f"{key} {width:,}" for key, width in split_widths(recipe.model).items() if width % tensor]
    if broken:
        _add(
            loaded,
            problems,
            ("parallel", "tensor_model_parallel_size"),
            f"{tensor} does not divide {', '.join(broken)}; legal: {listed(legal_tensor_parallel_sizes(recipe.model))}",
        )
    elif recipe.parallel.sequence_parallel and recipe.training.sequence_length % tensor:
        length = recipe.training.sequence_length
        _add(
            loaded,
            problems,
            ("training", "sequence_length"),
            f"{length:,} is no multiple of tensor_model_parallel_size {tensor}, which sequence_parallel splits it by; "
            f"nearest legal: {length // tensor * tensor or tensor:,}, {-(-length // tensor) * tensor:,}",
        )


def _cut_pattern(loaded: LoadedRecipe, problems: Problems) -> LayerPattern:
    """The pattern with its own cuts, or with cuts placed for the pipeline that is asked for."""
    model = loaded.recipe.model
    num_stages = loaded.recipe.parallel.pipeline_model_parallel_size
    key = ("parallel", "pipeline_model_parallel_size")
    pattern = parse_pattern(model.hybrid_layer_pattern)
    if pattern.cuts and len(pattern.cuts) + 1 != num_stages:
        cut = len(pattern.cuts) + 1
        message = (
            f"{num_stages}, but model.hybrid_layer_pattern {model.hybrid_layer_pattern!r} is cut into {cut} stages; "
            f"set it to {cut}, or remove each | to have the cuts placed"
        )
        _add(loaded, problems, key, message)
        return pattern
    if num_stages > pattern.num_layers:
        message = (
            f"{num_stages} stages for {pattern.num_layers} layers leave one empty; legal: 1 to {pattern.num_layers}"
        )
        _add(loaded, problems, key, message)
        return pattern
    if pattern.cuts or num_stages == 1:
        return pattern
    one = layer_parameters(model)
    vocabulary = padded_vocab_size(model.vocab_size) * model.hidden_size
    weights = [one[symbol] for symbol in pattern.symbols]
    # The output layer costs its rows on the last stage whether it is tied (a copy lives there) or not.
    return place_cuts(pattern, num_stages, weights, first=vocabulary, last=vocabulary + model.hidden_size)


def _data_parallel_size(recipe: Recipe, world_size: int, problems: Problems) -> int | None:
    tensor, pipeline = recipe.parallel.tensor_model_parallel_size, recipe.parallel.pipeline_model_parallel_size
    if world_size % (tensor * pipeline) == 0:
        return world_size // (tensor * pipeline)
    if problems.found:  # a number of processes for an impossible layout would be a false remedy
        return None
    message = (
        f"no multiple of tensor_model_parallel_size {tensor} x pipeline_model_parallel_size {pipeline} = "
        f"{tensor * pipeline}; start {_legal_worlds(recipe)} processes, or change the layout"
    )
    problems.add(Origin(f"world size {world_size}"), (), message)
    return None


def _check_microbatches(loaded: LoadedRecipe, data_parallel_size: int, problems: Problems) -> None:
    """A step must divide into whole microbatches, equally many on each rank."""
    training = loaded.recipe.training
    rows, micro = training.global_batch_size, training.micro_batch_size
    if rows % (micro * data_parallel_size) == 0:
        return
    if rows % data_parallel_size == 0:
        remedy = f"legal micro_batch_size: {listed(divisors(rows // data_parallel_size))}"
    else:
        remedy = f"no micro_batch_size is legal: start {_legal_worlds(loaded.recipe)} processes"
    _add(
        loaded,
        problems,
        ("training", "micro_batch_size"),
        f"{micro} x data_parallel_size {data_parallel_size} = {micro * data_parallel_size} does not divide "
        f"global_batch_size {rows}; {remedy}",
    )


def _legal_worlds(recipe: Recipe) -> str:
    """Numbers of processes that the layout and the batch allow."""
    rows = recipe.training.global_batch_size
    model_parallel = recipe.parallel.tensor_model_parallel_size * recipe.parallel.pipeline_model_parallel_size
    micro = recipe.training.micro_batch_size
    per_rank = rows // micro if rows % micro == 0 else rows
    worlds = [model_parallel * data for data in divisors(per_rank)]
    return " or ".join(filter(None, [listed(worlds[:-1]), str(worlds[-1])]))


def _add(loaded: LoadedRecipe, problems: Problems, key: tuple[str, ...], message: str) -> None:
    problems.add(loaded.origin(key), key, message)
