"""How steps are computed and saved, and which settings of it would change nothing.

| recompute | computed again in the backward pass                                                      |
|-----------|------------------------------------------------------------------------------------------|
| selective | `core_attn`: attention without its projections; `mlp`: MLP layers; nothing of Mamba-2     |
| full      | everything between the inputs of every `recompute_num_layers`-th layer of a stage         |

Core refuses some settings and silently ignores others; both are refused here. Source: megatron-core 0.19,
`transformer/transformer_config.py` (`__post_init__`), `recompute.py` (`uniform`: a last group that is shorter is
legal), `transformer/transformer_layer.py`, `ssm/mamba_layer.py`. Core's module `layernorm` is not offered: the stock
spec fuses norms into projections, and without Transformer Engine core 0.19.2 raises a NameError for it.
"""

from __future__ import annotations

from megatron_ext.plan.stage_plan import BatchPlan, ExecutionPlan, LayoutPlan
from megatron_ext.recipe.layer_pattern import ATTENTION, MLP, parse_pattern
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import Recipe, TrainingRecipe

_READERS = {"core_attn": ATTENTION, "mlp": MLP}
"""The layer of which selective recomputation computes a module again."""


def plan_execution(loaded: LoadedRecipe, layout: LayoutPlan, batch: BatchPlan, problems: Problems) -> ExecutionPlan:
    """Decides how steps are computed and saved.

    Args:
        loaded: What was asked.
        layout: Where the pipeline is cut.
        batch: How many steps there are.
        problems: Takes each setting that core refuses or that would change nothing.
    """
    training, checkpoint = loaded.recipe.training, loaded.recipe.checkpoint
    broken = {
        ("training", "recompute_modules"): _broken_modules(loaded.recipe),
        ("training", "recompute_num_layers"): _broken_num_layers(training, layout),
        ("checkpoint", "optimizer_format"): _broken_format(loaded.recipe),
        ("profile", "steps"): _broken_profile(loaded.recipe, batch),
    }
    for key, message in broken.items():
        if message:
            problems.add(loaded.origin(key), key, message)
    return ExecutionPlan(
        recompute=training.recompute,
        recompute_modules=training.recompute_modules,
        recompute_num_layers=training.recompute_num_layers,
        cuda_graphs=training.cuda_graphs,
        deterministic=training.deterministic,
        gc_interval_steps=training.gc_interval_steps,
        max_skipped_steps=training.max_skipped_steps,
        profile_steps=_first_and_last(loaded.recipe),
        optimizer_format=checkpoint.optimizer_format,
        async_save=checkpoint.async_save,
    )


def legal_recompute_modules(recipe: Recipe) -> list[str]:
    """The modules that layers of this pattern have."""
    symbols = parse_pattern(recipe.model.hybrid_layer_pattern).symbols
    return [module for module, layer in _READERS.items() if layer in symbols]


def _broken_modules(recipe: Recipe) -> str:
    training = recipe.training
    modules, default = training.recompute_modules, TrainingRecipe.model_fields["recompute_modules"].default
    asked = f"[{', '.join(modules)}]"
    if training.recompute != "selective":
        if modules == default:
            return ""
        return (
            f"{asked} is read with recompute selective only, and recompute is {training.recompute}; remove it "
            f"(or set it to [{', '.join(default)}] where a file above sets it)"
        )
    legal = legal_recompute_modules(recipe)
    remedy = f"legal: {', '.join(legal)}" if legal else "nothing here can be: set recompute to none or full"
    idle = [module for module in modules if module not in legal]
    if idle:
        pattern = recipe.model.hybrid_layer_pattern
        return f"{asked}: nothing of {', '.join(idle)} would be computed again in pattern {pattern!r}; {remedy}"
    return "" if modules else f"an empty list computes nothing again; {remedy}"


def _broken_num_layers(training: TrainingRecipe, layout: LayoutPlan) -> str:
    asked, longest = training.recompute_num_layers, max(map(len, layout.hybrid_layer_pattern.split("|")))
    if training.recompute != "full":
        if asked == 1:
            return ""
        return (
            f"{asked} is read with recompute full only, and recompute is {training.recompute}; remove it "
            "(or set it to 1 where a file above sets it)"
        )
    if asked <= longest:
        return ""
    return f"{asked}, but no pipeline stage has more than {longest} layers; legal: 1 to {longest}"


def _broken_format(recipe: Recipe) -> str:
    if recipe.checkpoint.optimizer_format == "fully_reshardable" or recipe.parallel.use_distributed_optimizer:
        return ""
    return (
        f"{recipe.checkpoint.optimizer_format} is read with parallel.use_distributed_optimizer only, "
        "and that is false; set it to true, or remove this"
    )


def _broken_profile(recipe: Recipe, batch: BatchPlan) -> str:
    asked = _first_and_last(recipe)
    steps = min(batch.total_steps, batch.max_steps or batch.total_steps)
    if asked is None or asked[1] <= steps:
        return ""
    return f"{recipe.profile.steps}: the run has {steps:,} steps; name some of these"


def _first_and_last(recipe: Recipe) -> tuple[int, int] | None:
    if recipe.profile.steps is None:
        return None
    first, last = recipe.profile.steps.split("-")
    return int(first), int(last)
