"""Options that hold every pass to one shape: overlap of tensor parallelism, and CUDA graphs; of `te` in training.

Both are of pretraining without isolated documents: there each microbatch, in training and in validation, has
`micro_batch_size x sequence_length` tokens and no packed parameters, and nothing proves isolation on shorter rows.

Source: megatron-core 0.19, `training/arguments.py` (overlap needs sequence parallelism),
`transformer/transformer_config.py` (graphs of layers take no full recomputation), `transformer/cuda_graphs.py` (with a
pipeline a graph for each microbatch, which a growing batch would outgrow); Transformer Engine 2.x,
`pytorch/module/base.py:fill_userbuffers_buffer_for_all_gather` (buffers take no fp8 in blocks).
"""

from __future__ import annotations

from data_tools.strict_yaml import KeyPath
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import Recipe

OVERLAP: KeyPath = ("parallel", "tp_comm_overlap")
GRAPHS: KeyPath = ("training", "cuda_graphs")


def check_te_options(loaded: LoadedRecipe, problems: Problems) -> None:
    """Notes what stands against the options that are asked for; everything of each in one message."""
    recipe = loaded.recipe
    asked = {
        OVERLAP: [*_not_of_one_shape(recipe), *_against_overlap(recipe)] if recipe.parallel.tp_comm_overlap else [],
        GRAPHS: _against_graphs(recipe) if recipe.training.cuda_graphs else [],
    }
    for key, reasons in asked.items():
        if reasons:
            problems.add(loaded.origin(key), key, f"true, but {'; '.join(reasons)}; set this to false, or change these")


def _not_of_one_shape(recipe: Recipe) -> list[str]:
    reasons = []
    if recipe.training.backend == "local":
        reasons.append("training.backend local has none of it (te has)")
    if recipe.stage != "pretrain":
        reasons.append(f"stage {recipe.stage} reads packed rows")
    elif recipe.data.document_isolation != "none":
        reasons.append(f"data.document_isolation {recipe.data.document_isolation} tells layers where documents begin")
    if recipe.parallel.context_parallel_size > 1:
        reasons.append(
            f"parallel.context_parallel_size {recipe.parallel.context_parallel_size} is proved on other rows first"
        )
    return reasons


def _against_overlap(recipe: Recipe) -> list[str]:
    reasons = []
    if not recipe.parallel.sequence_parallel:
        reasons.append("parallel.sequence_parallel is false, and nothing is gathered or scattered around products")
    if recipe.fp8 is not None and recipe.fp8.recipe == "blockwise":
        reasons.append("fp8.recipe blockwise does not go through its buffers (tensorwise does)")
    return reasons


def _against_graphs(recipe: Recipe) -> list[str]:
    if recipe.stage == "rl":  # of sampling: rollout/graphed.py
        tensor = recipe.parallel.tensor_model_parallel_size
        return (
            [f"parallel.tensor_model_parallel_size {tensor} adds up between ranks while sampling"] if tensor > 1 else []
        )
    reasons = _not_of_one_shape(recipe)
    if recipe.parallel.pipeline_model_parallel_size > 1:
        reasons.append("parallel.pipeline_model_parallel_size is above 1, which needs a graph for each microbatch")
    if recipe.training.recompute != "none":
        reasons.append(f"training.recompute {recipe.training.recompute} runs layers again outside of their graphs")
    if recipe.parallel.tp_comm_overlap:
        reasons.append("parallel.tp_comm_overlap sends on streams of its own")
    return reasons
