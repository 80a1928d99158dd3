"""Which layouts a model allows: processes = TP x PP x CP x DP.

| key                           | must divide                                                                   |
|-------------------------------|-------------------------------------------------------------------------------|
| tensor_model_parallel_size    | heads, query groups, Mamba heads and groups, MLP width, padded vocabulary     |
| context_parallel_size         | Mamba heads / TP; and Mamba groups / TP, or be a multiple of these; half of   |
|                               | `sft.pad_multiple`                                                            |
| pipeline_model_parallel_size  | nothing: at most the number of layers, or as many stages as the pattern's `|` |
| `sequence_unit`               | the sequence length                                                           |
| micro_batch_size x DP         | the global batch size                                                         |

Source of the rules: megatron-core 0.19, `transformer/transformer_config.py` (heads and groups),
`ssm/mamba_mixer.py` (Mamba heads and groups), `ssm/mamba_context_parallel.py` (CP takes heads after TP,
and repeats groups where there are fewer than ranks), `tensor_parallel/layers.py` (every split width must
divide). Attention sets no bound on CP: Transformer Engine passes keys and values around (`p2p`, core's default),
it does not deal out heads. Core would also share one key/value head among several ranks; that is refused here, because
no test of this project covers it.
"""

from __future__ import annotations

import math

from megatron_ext.plan.cuts import cut_by_parameters
from megatron_ext.plan.sizes import padded_vocab_size
from megatron_ext.plan.stage_plan import LayoutPlan
from megatron_ext.recipe.layer_pattern import MAMBA, MLP, LayerPattern, parse_pattern
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Origin, Problems
from megatron_ext.recipe.rules import divisors, listed
from megatron_ext.recipe.schema import ModelRecipe, ParallelRecipe, Recipe, SftRecipe


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
    _check_context_split(loaded, problems)
    pattern = _cut_pattern(loaded, problems)
    world = _model_parallel_size(recipe) if world_size is None else world_size
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
        tp_comm_overlap=parallel.tp_comm_overlap,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
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


def legal_context_parallel_sizes(recipe: Recipe) -> list[int]:
    """Every number of ranks that can share one sequence, with the recipe's tensor parallelism."""
    length = recipe.training.sequence_length
    fitting = [size for size in divisors(length) if length % sequence_unit(recipe.parallel, context=size) == 0]
    proved = [size for size in fitting if size == 1 or length >= shortest_proved_row(size)]
    return [size for size in proved if not _broken_by_context(recipe, size)]


def sequence_unit(parallel: ParallelRecipe, *, context: int) -> int:
    """What a sequence length must be a multiple of.

    Context parallelism gives each rank an early and a late piece, 2 x CP in all, so that causal attention is equal
    work for all; sequence parallelism then splits what a rank has by TP.

    Source: megatron-core 0.19, `models/multimodal/context_parallel.py` and `transformer/experimental_attention_variant/
    dsa_layout.py` (2 x CP); `tensor_parallel/mappings.py` (TP).
    """
    split = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return context * math.lcm(2, split) if context > 1 else split


def shortest_proved_row(context: int) -> int:
    """Tokens of the shortest row on which the isolation of documents can be proved (`training/isolation.py`).

    Four documents and padding are eight pieces: tokens, or the 2 x CP parts of which ranks that share a row hold two.

    >>> shortest_proved_row(1), shortest_proved_row(2)
    (16, 32)
    """
    return 16 * context


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
        return
    context, length = recipe.parallel.context_parallel_size, recipe.training.sequence_length
    if length % (unit := sequence_unit(recipe.parallel, context=context)):
        by = f"tensor_model_parallel_size {tensor}, which sequence_parallel splits it by"
        if context > 1:
            split = f"lcm(2, tensor_model_parallel_size {tensor})" if recipe.parallel.sequence_parallel else "2"
            by = f"{unit} = context_parallel_size {context} x {split}"
        message = (
            f"{length:,} is no multiple of {by}; "
            f"nearest legal: {length // unit * unit or unit:,}, {-(-length // unit) * unit:,}"
        )
        _add(loaded, problems, ("training", "sequence_length"), message)


def _check_context_split(loaded: LoadedRecipe, problems: Problems) -> None:
    recipe = loaded.recipe
    context, key = recipe.parallel.context_parallel_size, ("parallel", "context_parallel_size")
    if context == 1:
        return
    if recipe.training.backend == "local":
        message = (
            f"{context}, but training.backend local needs whole sequences on a rank; "
            "set that to te, or this to 1 and raise tensor_model_parallel_size"
        )
        _add(loaded, problems, key, message)
    elif recipe.stage not in ("pretrain", "sft"):
        message = f"{context}, but stage {recipe.stage} needs whole sequences on a rank; set this to 1"
        _add(loaded, problems, key, message)
    elif recipe.stage == "pretrain" and (isolation := recipe.data.document_isolation) != "none":
        message = (
            f"{context}, but data.document_isolation {isolation} keeps documents of any length apart, and ranks share "
            f"only such as are multiples of {2 * context}; set this to 1 and raise tensor_model_parallel_size"
        )
        _add(loaded, problems, key, message)
    elif broken := _broken_by_context(recipe, context):
        legal = legal_context_parallel_sizes(recipe)
        _add(loaded, problems, key, f"{context} {broken}; legal: {listed(legal)}")
    elif recipe.stage == "sft" and (pad := (recipe.sft or SftRecipe()).pad_multiple) % (2 * context):
        message = (
            f"{pad} is no multiple of {2 * context} = 2 x context_parallel_size {context}, into which each "
            f"conversation is cut; set it to {math.lcm(pad, 2 * context)}, in every layout of this stage: it decides "
            "about rows, and so about the stage's id"
        )
        _add(loaded, problems, ("sft", "pad_multiple"), message)
    elif (length := recipe.training.sequence_length) < (least := shortest_proved_row(context)):
        message = (
            f"{length:,}, and what context_parallel_size {context} does to a row is proved before training on one of "
            f"at least {least} = 16 x {context} tokens; lengthen the rows"
        )
        _add(loaded, problems, ("training", "sequence_length"), message)


def _broken_by_context(recipe: Recipe, context: int) -> str:
    """What stands against a number of ranks that share a sequence, the sequence's length apart; "" if nothing."""
    model, tensor = recipe.model, recipe.parallel.tensor_model_parallel_size
    if not parse_pattern(model.hybrid_layer_pattern).count(MAMBA):
        return ""
    heads, groups = model.mamba_num_heads // tensor, max(1, model.mamba_num_groups // tensor)
    if heads % context:
        return f"does not divide mamba_num_heads {model.mamba_num_heads} / tensor_model_parallel_size {tensor}"
    if context % groups and groups % context:
        return (
            f"neither divides nor is a multiple of mamba_num_groups {model.mamba_num_groups} / "
            f"tensor_model_parallel_size {tensor}"
        )
    return ""


def _cut_pattern(loaded: LoadedRecipe, problems: Problems) -> LayerPattern:
    """The pattern with its own cuts, or with cuts placed for the pipeline that is asked for."""
    model = loaded.recipe.model
    num_stages = loaded.recipe.parallel.pipeline_model_parallel_size
    key = ("parallel", "pipeline_model_parallel_size")
    origins = [loaded.origin(key), loaded.origin(("model", "hybrid_layer_pattern"))]
    blamed = next((origin for origin in origins if origin.is_over), origins[0])  # an option, if one changed either
    pattern = parse_pattern(model.hybrid_layer_pattern)
    if pattern.cuts and len(pattern.cuts) + 1 != num_stages:
        cut = len(pattern.cuts) + 1
        message = (
            f"{num_stages}, but model.hybrid_layer_pattern {model.hybrid_layer_pattern!r} is cut into {cut} stages; "
            f"set it to {cut}, or remove each | to have the cuts placed"
        )
        problems.add(blamed, key, message)
        return pattern
    if num_stages > pattern.num_layers:
        message = (
            f"{num_stages} stages for {pattern.num_layers} layers leave one empty; legal: 1 to {pattern.num_layers}"
        )
        problems.add(blamed, key, message)
        return pattern
    if pattern.cuts or num_stages == 1:
        return pattern
    return cut_by_parameters(model, num_stages)


def _model_parallel_size(recipe: Recipe) -> int:
    """Processes that hold one copy of the model and read one sequence together."""
    parallel = recipe.parallel
    ranks = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    return ranks * parallel.context_parallel_size


def _data_parallel_size(recipe: Recipe, world_size: int, problems: Problems) -> int | None:
    parallel, ranks = recipe.parallel, _model_parallel_size(recipe)
    if world_size % ranks == 0:
        return world_size // ranks
    if problems.found:  # a number of processes for an impossible layout would be a false remedy
        return None
    context = f" x context_parallel_size {parallel.context_parallel_size}" if parallel.context_parallel_size > 1 else ""
    message = (
        f"no multiple of tensor_model_parallel_size {parallel.tensor_model_parallel_size} x "
        f"pipeline_model_parallel_size {parallel.pipeline_model_parallel_size}{context} = {ranks}; "
        f"start {_legal_worlds(recipe, near=world_size)}, or change the layout"
    )
    problems.add(Origin(f"world size {world_size}"), (), message)
    return None


def _check_microbatches(loaded: LoadedRecipe, data_parallel_size: int, problems: Problems) -> None:
    """A step must divide into whole microbatches, equally many on each rank; steps of sft and rl are filled up."""
    training = loaded.recipe.training
    if loaded.recipe.stage in ("sft", "rl"):
        return
    rows, micro = training.global_batch_size, training.micro_batch_size
    if rows % (micro * data_parallel_size) == 0:
        return
    if rows % data_parallel_size == 0:
        remedy = f"legal micro_batch_size: {listed(divisors(rows // data_parallel_size))}"
    else:
        below, above = (
            rows // data_parallel_size * data_parallel_size,
            -(-rows // data_parallel_size) * data_parallel_size,
        )
        near = " or ".join(f"{size}" for size in (below, above) if size)
        world = data_parallel_size * _model_parallel_size(loaded.recipe)
        remedy = (
            f"no micro_batch_size is legal: set global_batch_size to {near}, "
            f"or start {_legal_worlds(loaded.recipe, near=world)}"
        )
    _add(
        loaded,
        problems,
        ("training", "micro_batch_size"),
        f"{micro} x data_parallel_size {data_parallel_size} = {micro * data_parallel_size} does not divide "
        f"global_batch_size {rows}; {remedy}",
    )


def _legal_worlds(recipe: Recipe, *, near: int) -> str:
    """Numbers of processes that the layout and the batch allow: the nearest three on either side."""
    if recipe.stage in ("sft", "rl"):  # steps are filled up for any number of ranks
        return f"a multiple of {_model_parallel_size(recipe)} processes"
    rows = recipe.training.global_batch_size
    micro = recipe.training.micro_batch_size
    per_rank = rows // micro if rows % micro == 0 else rows
    worlds = [_model_parallel_size(recipe) * data for data in divisors(per_rank)]
    worlds = [*[world for world in worlds if world < near][-3:], *[world for world in worlds if world >= near][:3]]
    numbers = " or ".join(filter(None, [listed(worlds[:-1]), str(worlds[-1])]))
    return f"{numbers} {'process' if worlds == [1] else 'processes'}"


def _add(loaded: LoadedRecipe, problems: Problems, key: tuple[str, ...], message: str) -> None:
    problems.add(loaded.origin(key), key, message)
