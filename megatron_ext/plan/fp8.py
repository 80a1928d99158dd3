"""Whether the matrix products of a recipe can be made in fp8, asked before a device is touched.

Every dimension of a product must be a multiple of 16: tokens and the widths that a rank has after tensor parallelism.

Source: megatron-core 0.19, `fp8_utils.get_fp8_align_size`, `ssm/mamba_mixer.py` (in_proj),
`transformer/transformer_config.py` (bf16 layers at the ends); Transformer Engine 2.x,
`pytorch/utils.py:assert_dim_for_fp8_exec`, which asks for 8 of the tokens in the forward pass alone.
"""

from __future__ import annotations

from megatron_ext.recipe.fp8_schema import Fp8Recipe
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA, MLP, parse_pattern
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import ModelRecipe, Recipe

ALIGNMENT = 16


def check_fp8(loaded: LoadedRecipe, problems: Problems) -> None:
    """Notes everything about `fp8` that cannot be carried out."""
    fp8 = loaded.recipe.fp8
    if fp8 is None:
        return
    broken = {
        ("fp8",): _broken_place(loaded.recipe),
        ("fp8", "bf16_edge_layers"): _broken_edges(loaded.recipe, fp8),
        ("fp8", "recipe"): _broken_sizes(loaded.recipe, fp8),
    }
    for key, message in broken.items():
        if message:
            problems.add(loaded.origin(key), key, message)


def product_widths(model: ModelRecipe, *, tensor_model_parallel_size: int) -> dict[str, int]:
    """The widths of one rank's products, by the keys that make them.

    Raises:
        AssertionError: Tensor parallelism does not divide one; `plan_layout` refuses that.
    """
    pattern = parse_pattern(model.hybrid_layer_pattern)
    whole: dict[str, int] = {}
    if pattern.count(MAMBA):
        inner = model.mamba_num_heads * model.mamba_head_dim
        shared = model.mamba_num_groups * model.mamba_state_dim
        whole["mamba_num_heads x mamba_head_dim"] = inner
        whole["2 x mamba_num_heads x mamba_head_dim + 2 x mamba_num_groups x mamba_state_dim + mamba_num_heads"] = (
            2 * inner + 2 * shared + model.mamba_num_heads
        )
    if pattern.count(ATTENTION):
        heads, groups = model.num_attention_heads, model.num_query_groups
        whole["num_attention_heads x kv_channels"] = heads * model.kv_channels
        whole["(num_attention_heads + 2 x num_query_groups) x kv_channels"] = (heads + 2 * groups) * model.kv_channels
    if pattern.count(MLP):
        whole["ffn_hidden_size"] = model.ffn_hidden_size
    broken = [key for key, width in whole.items() if width % tensor_model_parallel_size]
    assert not broken, f"tensor_model_parallel_size {tensor_model_parallel_size} does not divide {broken}"
    return {"hidden_size": model.hidden_size} | {
        key: width // tensor_model_parallel_size for key, width in whole.items()
    }


def _broken_place(recipe: Recipe) -> str:
    if recipe.precision != "bf16":
        return (
            f"set, but precision is {recipe.precision}: fp8 products stand beside bf16 ones; "
            "set precision to bf16, or this to null"
        )
    if recipe.training.backend == "local":
        return (
            "set, but training.backend local multiplies in bf16 only; set that to te (or auto), or this to null "
            "(another stage: what it computes is part of its id)"
        )
    if recipe.stage == "rl":
        return (
            "set, but stage rl samples in bf16, and what it samples must be what it trains; set it to null "
            "(weights of a stage in fp8 can be taken: they are bf16)"
        )
    return ""


def _broken_edges(recipe: Recipe, fp8: Fp8Recipe) -> str:
    layers = parse_pattern(recipe.model.hybrid_layer_pattern).num_layers
    most = min(layers // recipe.parallel.pipeline_model_parallel_size, (layers - 1) // 2)
    if fp8.bf16_edge_layers <= most:
        return ""
    return (
        f"{fp8.bf16_edge_layers}, but of {layers} layers in {recipe.parallel.pipeline_model_parallel_size} pipeline "
        f"stage(s) at most {most} at either end can stay in bf16 and leave one in fp8; lower it"
    )


def _broken_sizes(recipe: Recipe, fp8: Fp8Recipe) -> str:
    parallel, tensor = recipe.parallel, recipe.parallel.tensor_model_parallel_size
    try:
        widths = product_widths(recipe.model, tensor_model_parallel_size=tensor)
    except AssertionError:
        return ""  # plan_layout says it
    split = parallel.context_parallel_size * (tensor if parallel.sequence_parallel else 1)
    tokens, rest = divmod(recipe.training.sequence_length, split)
    if rest == 0:  # if not, plan_layout says it
        widths["training.sequence_length of a rank"] = tokens
    broken = [f"{key} = {width:,}" for key, width in widths.items() if width % ALIGNMENT]
    if not broken:
        return ""
    ranks = f" (with tensor_model_parallel_size {tensor})" if tensor > 1 else ""
    return (
        f"{fp8.recipe}, but fp8 multiplies multiples of {ALIGNMENT} only, and on a rank{ranks} "
        f"{'; '.join(broken)}; change these, or set fp8 to null"
    )
