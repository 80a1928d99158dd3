"""One recipe file of a stage, or of a part of it, checked as far as it can be: a line that says what it is."""

from __future__ import annotations

from pathlib import Path

from data_tools.blend_files import read_blend
from data_tools.quantities import format_count, format_exact
from megatron_ext.plan.datasets import has_sizes
from megatron_ext.plan.make import draft_plan, make_stage_plan
from megatron_ext.plan.rl import has_prompts
from megatron_ext.plan.sizes import model_size
from megatron_ext.recipe.load import LoadedRecipe, load_file
from megatron_ext.recipe.locate import locate
from megatron_ext.recipe.schema import BlendRecipe, ModelRecipe, SiteRecipe, SourceRecipe


def validate_file(path: Path) -> str:
    """Checks a file and everything that it names.

    A stage recipe whose data is not there is checked as far as it goes without data.

    Args:
        path: A YAML file of the recipes folder; no arm and no study.

    Returns:
        `PATH: ok: kind, name, …` in one line.

    Raises:
        UserError: Everything that is wrong.
    """
    loaded = load_file(path)
    if isinstance(loaded, ModelRecipe):
        facts = f"model {loaded.name}, {format_exact(model_size(loaded).total_parameters)} parameters"
    elif isinstance(loaded, SourceRecipe):
        facts = f"source {loaded.source}, {loaded.domain}"
    elif isinstance(loaded, BlendRecipe):
        num_sources = len({source.recipe.source for source in read_blend(locate(path)).sources()})
        facts = f"blend {loaded.blend}, {loaded.weighting}, {num_sources} source{'s' if num_sources > 1 else ''}"
    elif isinstance(loaded, SiteRecipe):
        facts = f"site, data_root {loaded.data_root}, run_root {loaded.run_root}"
    else:
        assert isinstance(loaded, LoadedRecipe), "arms and studies are validated by their plans: study/validate.py"
        facts = _stage_facts(loaded)
    return f"{path}: ok: {facts}"


def _stage_facts(loaded: LoadedRecipe) -> str:
    draft = draft_plan(loaded)
    identity, total_tokens = "data not built yet", draft.batch.total_tokens
    size = f"{format_exact(loaded.recipe.budget.examples)} conversations" if loaded.recipe.stage == "sft" else ""
    if has_prompts(loaded) if loaded.recipe.stage == "rl" else has_sizes(loaded):
        plan = make_stage_plan(loaded, may_be_provisional=True)
        total_tokens, size = plan.batch.total_tokens, ""  # an sft stage's tokens follow from packing
        notes = ["sizes declared, data not built yet"] if plan.data.is_provisional else []
        notes += ["parent unresolved"] if plan.awaits_weights else []
        identity = f"{plan.stage_id}{f' ({", ".join(notes)})' if notes else ''}"
    size = size or f"{format_count(total_tokens)} tokens"
    return f"{loaded.recipe.stage} recipe, model {loaded.recipe.model.name}, {size}, {identity}"
