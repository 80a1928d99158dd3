"""`megatron-ext study run --launcher slurm`: everything that is unfinished goes into the queue at once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from data_tools.atomic_files import write_atomically
from data_tools.errors import RecipeError, UsageError
from megatron_ext.plan.layouts import plan_layout
from megatron_ext.recipe.load import DEFAULT_SITE, load_file, load_recipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.site_schema import SiteRecipe, SlurmRecipe
from megatron_ext.study.launcher import Task, study_folder
from megatron_ext.study.run import Wanted, require_questions, tasks_of
from megatron_ext.study.slurm import SlurmLauncher
from megatron_ext.study.slurm_script import place_of
from megatron_ext.study.study_lock import only_runner
from megatron_ext.study.study_plan import StageNode


def submit_study(wanted: Wanted, *, is_dry: bool = False, say: Callable[[str], None] = print) -> None:
    """Submits what is neither finished nor in the queue, and does not wait for it.

    Args:
        wanted: What.
        is_dry: Whether the scripts are only written, and the commands that submit them said.
        say: Writes a line for people.

    Raises:
        UserError: Something is missing, or Slurm refuses; the next run submits what this one has not.
    """
    site_file = str(wanted.site or DEFAULT_SITE)
    site = _slurm_of(site_file)
    plan = wanted.plan(is_dry=is_dry)
    run_root = Path(plan.run_root)
    tasks = tasks_of(plan, run_root, wanted)
    require_questions(plan, tasks)
    _require_layouts(list(tasks.values()), site, wanted)
    launcher = SlurmLauncher(run_root, plan, site, site_file, say)
    if is_dry:
        for script, names, after in launcher.write_scripts(list(tasks.values())):
            behind = f"  # after {', '.join(after)}" if after else ""
            say(f"sbatch {shlex.quote(str(script))}  # {', '.join(names)}{behind}")
        return
    folder = study_folder(run_root, plan.name)
    with only_runner(folder):
        write_atomically(folder / "study.json", plan.to_json().encode())
        submitted = launcher.launch(list(tasks.values()))
    say(f"{plan.name}: {submitted} of {len(tasks)} unfinished nodes submitted; scripts in {folder / 'slurm'}")
    say(f"what becomes of them: megatron-ext study status {wanted.study} --run-root {run_root}")


def _require_layouts(tasks: Sequence[Task], site: SlurmRecipe, wanted: Wanted) -> None:
    """Refuses jobs whose ranks their stages cannot share, before anything waits in a queue.

    Raises:
        RecipeError: With each of them.
    """
    problems = Problems()
    seen: set[tuple[object, ...]] = set()
    for task in tasks:
        node, ranks = task.node, place_of(task, site).ranks
        if not isinstance(node, StageNode) or ranks == node.world_size or (node.stage, node.recipe, node.arms) in seen:
            continue
        seen.add((node.stage, node.recipe, node.arms))
        loaded = load_recipe(node.recipe, overrides=node.overrides, site=wanted.site)
        plan_layout(loaded, problems, world_size=ranks)
    try:
        problems.raise_recipe_error()
    except RecipeError as error:
        sizes = "slurm: nodes x ranks of a node are more ranks than stages can share; change them here or there"
        raise RecipeError(f"{wanted.site}: {sizes}:\n{error}") from None


def _slurm_of(site_file: str) -> SlurmRecipe:
    """How jobs are submitted there.

    Raises:
        UsageError: The file is no site, or says nothing of Slurm.
    """
    site = load_file(site_file)
    if not isinstance(site, SiteRecipe) or site.slurm is None:
        raise UsageError(
            f"--launcher slurm: {site_file} has no slurm section, which says how jobs are submitted here; give --site "
            "a copy of recipes/sites/slurm_gpu.yaml with what is yours"
        )
    return site.slurm
