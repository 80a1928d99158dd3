"""`megatron-ext study run --launcher slurm`: everything that is unfinished goes into the queue at once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from data_tools.errors import RecipeError, SetupError, UsageError
from megatron_ext.plan.layouts import plan_layout
from megatron_ext.recipe.load import DEFAULT_SITE, load_file, load_recipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.site_schema import SiteRecipe, SlurmRecipe
from megatron_ext.study.as_run import write_record
from megatron_ext.study.launcher import Task, study_folder
from megatron_ext.study.run import PROVISIONAL, RunRequest, is_provisional, require_questions, tasks_of
from megatron_ext.study.slurm import SlurmLauncher
from megatron_ext.study.slurm_script import job_size
from megatron_ext.study.study_lock import only_runner
from megatron_ext.study.study_plan import StageNode


def submit_study(request: RunRequest, *, is_dry: bool = False, say: Callable[[str], None] = print) -> None:
    """Submits what is neither finished nor in the queue, and does not wait for it.

    Args:
        request: What.
        is_dry: Whether the scripts are only written, and the commands that submit them said; where data are not there
            yet nothing is written.
        say: Writes a line for people.

    Raises:
        UserError: Something is missing, Slurm refuses, or what stands before a node is left out; the next run submits
            what this one has not.
    """
    site_file = str(request.site or DEFAULT_SITE)
    site = _slurm_of(site_file)
    plan = request.plan(is_dry=is_dry)
    run_root = Path(plan.run_root)
    tasks = tasks_of(plan, run_root, request)
    require_questions(plan, tasks)
    _require_layouts(list(tasks.values()), site, request)
    launcher = SlurmLauncher(run_root, plan, site, site_file, say)
    if is_dry:
        _print_dry_run(launcher, list(tasks.values()), say)
        return
    folder = study_folder(run_root, plan.name)
    record = request.record(plan)
    with only_runner(folder):
        write_record(folder, record)
        submitted, left = launcher.launch(list(tasks.values()))
    queued = len(tasks) - len(submitted) - len(left)
    before = f", {queued} were in the queue" if queued else ""
    said = f"{len(submitted)} of {len(tasks)} unfinished nodes submitted{before}"
    say(f"{plan.name}: {said}; scripts in {folder / 'slurm'}")
    say(f"what becomes of them: megatron-ext study status {request.study} --run-root {run_root}")
    if left:
        raise UsageError(
            f"{plan.name}: {len(left)} of {len(tasks)} unfinished nodes were not submitted, for the stages before them "
            f"are neither finished nor in the queue: {', '.join(left)}\n  Leave out --only, or run those stages first."
        )


def _print_dry_run(launcher: SlurmLauncher, tasks: Sequence[Task], say: Callable[[str], None]) -> None:
    """Writes the scripts and says how they would be submitted; writes none where their nodes' ids are to change."""
    if provisional := [task.name for task in tasks if is_provisional(task)]:
        say(f"No script is written: of {len(provisional)} of {len(tasks)} nodes, {PROVISIONAL}.")
        for task in tasks:
            say(f"  {task.name}{f'  # after {", ".join(task.after)}' if task.after else ''}")
        return
    say("Scripts are written, and nothing is submitted.")
    for script, names, after in launcher.write_scripts(tasks):
        behind = f"  # after {', '.join(after)}" if after else ""
        say(f"sbatch {shlex.quote(str(script))}  # {', '.join(names)}{behind}")


def _require_layouts(tasks: Sequence[Task], site: SlurmRecipe, request: RunRequest) -> None:
    """Refuses jobs whose ranks their stages cannot share, before anything waits in a queue.

    Raises:
        RecipeError: With each of them.
    """
    problems = Problems()
    seen: set[tuple[object, ...]] = set()
    for task in tasks:
        node, ranks = task.node, job_size(task, site).ranks
        if not isinstance(node, StageNode) or ranks == node.world_size or (node.stage, node.recipe, node.arms) in seen:
            continue
        seen.add((node.stage, node.recipe, node.arms))
        loaded = load_recipe(node.recipe, overrides=node.overrides, site=request.site)
        plan_layout(loaded, problems, world_size=ranks)
    try:
        problems.raise_recipe_error()
    except RecipeError as error:
        sizes = "slurm: nodes x ranks of a node are more ranks than stages can share; change them here or there"
        raise RecipeError(f"{request.site}: {sizes}:\n{error}") from None


def _slurm_of(site_file: str) -> SlurmRecipe:
    """How jobs are submitted there.

    Raises:
        UsageError: The file is no site, or says nothing of Slurm.
        SetupError: It asks for a watch over hanging ranks, and this Python, which jobs will run, has none.
    """
    site = load_file(site_file)
    if not isinstance(site, SiteRecipe) or site.slurm is None:
        raise UsageError(
            f"--launcher slurm: {site_file} has no slurm section, which says how jobs are submitted here; give --site "
            "a copy of recipes/sites/slurm_gpu.yaml with what is yours"
        )
    is_this_python = site.slurm.python is None and not site.slurm.container
    if site.slurm.hang_s is not None and is_this_python and find_spec("nvidia_resiliency_ext") is None:
        raise SetupError(
            f"{site_file}: slurm.hang_s {site.slurm.hang_s}: nvidia-resiliency-ext is not installed. Run `pip install "
            "'nvidia-resiliency-ext>=0.6'` (wheels need glibc 2.39 or later), or leave slurm.hang_s out."
        )
    return site.slurm
