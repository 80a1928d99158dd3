"""The walk of one stage, or of an arm's unfinished stages one after the other.

    torchrun --nproc-per-node 2 -m megatron_ext.run recipes/demo/pretrain.yaml

recipe -> plan -> model, optimizer, cursor, objective -> train -> checkpoints -> stage.json. Up to the
line that joins the process groups nothing has touched torch, a device or the disk: whatever is wrong
with recipe, data or folder of any stage ends the run there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.errors import RecipeError, UserError
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.render import print_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.recipe.site_schema import TimeoutsRecipe
from megatron_ext.recipe.study_load import is_arm_file
from megatron_ext.rollout.vllm_server import servers_of_environment
from megatron_ext.runtime.determinism import be_deterministic
from megatron_ext.runtime.heartbeat import heartbeat
from megatron_ext.runtime.launch import Launch
from megatron_ext.training.ending import Ending, StoppedError, environment_error, is_of_environment
from megatron_ext.training.file_list import checkpoints_of
from megatron_ext.training.parent_stage import parent_checkpoint

if TYPE_CHECKING:
    from megatron_ext.training.loop import Outcome
    from megatron_ext.training.stage_folder import StageFolder


def main(argv: list[str] | None = None) -> int:
    """Runs a recipe; returns the exit code of data_tools/errors.py."""
    arguments = _parser().parse_args(argv)
    launch = Launch.from_environment()
    ending = Ending()
    try:
        _run(arguments, launch, ending)
    except UserError as error:
        return ending.fail(error, launch)
    except KeyboardInterrupt:
        at_once = (
            "ended by SIGINT at once. Run again to go on from the newest checkpoint, or to begin where there is none."
        )
        return ending.fail(StoppedError(at_once), launch)
    except Exception as bug:
        if (code := ending.lost_rank(bug)) is not None:
            return code
        if isinstance(bug, OSError) and is_of_environment(bug):
            return ending.fail(environment_error(bug), launch)
        if launch.is_main:
            ending.record(code=1, reason="crashed", message=f"{type(bug).__name__}: {bug}")
        raise
    finally:
        ending.close()
    return 0


@dataclass(frozen=True)
class Walk:
    """What is to be walked.

    Attributes:
        run_root: Folder that holds `stages/`.
        timeouts: How long ranks wait for each other here.
        plans: Stages, parents first.
        is_arm: Whether an arm names them.
        leaves_out: Whether --stage leaves out others of the arm.
    """

    run_root: Path
    timeouts: TimeoutsRecipe
    plans: tuple[StagePlan, ...]
    is_arm: bool = False
    leaves_out: bool = False

    def is_finished(self, stage_id: str) -> bool:
        """Whether a stage has trained to its end."""
        return (self.run_root / "stages" / stage_id / STAGE_FILE).is_file()


def _run(arguments: argparse.Namespace, launch: Launch, ending: Ending) -> None:
    walk = (_planned_arm if is_arm_file(arguments.recipe) else _planned_stage)(arguments, launch)
    if arguments.dry_run:
        for plan in walk.plans if launch.is_main else ():
            print_plan(plan, run_root=walk.run_root)
        return
    if walk.is_arm:
        for plan in walk.plans:
            if walk.is_finished(plan.stage_id):
                _say(launch, f"{plan.stage_id}: finished before ({plan.recipe})")
        walk = replace(walk, plans=tuple(plan for plan in walk.plans if not walk.is_finished(plan.stage_id)))
    for plan in walk.plans:
        steps = f"{plan.model.name}, {plan.batch.total_steps} steps"
        _say(launch, f"{plan.stage_id}: {steps} -> {walk.run_root}/stages/{plan.stage_id}")
        for sentence in plan.roundings:
            _say(launch, f"WARNING: {sentence}")
    for index, plan in enumerate(walk.plans):
        _require_beginning(walk, plan, trained_before=[one.stage_id for one in walk.plans[:index]])
    if walk.plans:
        _execute(walk, launch, ending)


def _planned_stage(arguments: argparse.Namespace, launch: Launch) -> Walk:
    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    run_root = Path(arguments.run_root or loaded.site.run_root)
    plan = make_stage_plan(
        loaded, world_size=launch.world_size, may_be_provisional=arguments.dry_run, run_root=run_root
    )
    if arguments.stage not in (None, plan.stage):
        raise UserError(f"--stage {arguments.stage}: {arguments.recipe} is a {plan.stage} stage. Leave --stage out.")
    return Walk(run_root, loaded.site.timeouts, (plan,))


def _planned_arm(arguments: argparse.Namespace, launch: Launch) -> Walk:
    from megatron_ext.study.make import make_arm_plan

    arm = make_arm_plan(
        arguments.recipe,
        site=arguments.site,
        run_root=arguments.run_root,
        overrides=arguments.set,
        world_size=launch.world_size,
        may_be_provisional=arguments.dry_run,
    )
    chosen = tuple(plan for plan in arm.stages if arguments.stage in (None, plan.stage))
    if not chosen:
        kinds = ", ".join(dict.fromkeys(plan.stage for plan in arm.stages))
        raise UserError(f"--stage {arguments.stage}: {arguments.recipe} has no such stage; there are: {kinds}")
    leaves_out = len(chosen) < len(arm.stages)
    return Walk(arm.run_root, arm.site.timeouts, chosen, is_arm=True, leaves_out=leaves_out)


def _require_beginning(walk: Walk, plan: StagePlan, *, trained_before: Sequence[str]) -> None:
    """Refuses a stage that could not train here, or whose parent is neither finished nor trained before it.

    Before torch is imported, which takes seconds on every rank, unless te is needed: whoever lacks that should not
    hear first that a parent must be trained.
    """
    if walk.is_finished(plan.stage_id):
        return
    if plan.rl is not None and plan.rl.options.engine == "vllm":
        servers_of_environment()
    if plan.layout.backend == "te" or plan.layout.context_parallel_size > 1 or plan.fp8 is not None:
        from megatron_ext.runtime.warnings import quiet_known_warnings

        quiet_known_warnings()
        from megatron_ext.models.backends import choose_backend

        choose_backend(plan)
    if plan.behind is not None and plan.behind.stage_id in trained_before:
        return
    needs_reference = plan.rl is not None and plan.rl.has_reference
    if needs_reference or not checkpoints_of(walk.run_root / "stages" / plan.stage_id / "checkpoints"):
        try:
            parent_checkpoint(walk.run_root, plan)
        except RecipeError as error:
            if not walk.leaves_out:
                raise
            raise RecipeError(f"{error}\n  Or leave --stage out, and the arm trains it first.") from None


def _execute(walk: Walk, launch: Launch, ending: Ending) -> None:
    """Everything from here on needs torch."""
    launch.require_fresh_starts()
    from megatron_ext.runtime.warnings import quiet_known_warnings

    quiet_known_warnings()
    if any(plan.execution.deterministic for plan in walk.plans):
        be_deterministic()
    from megatron_ext.datasets.rollout_file import require_zstandard
    from megatron_ext.runtime.device import release_memory
    from megatron_ext.training.metrics import check_loggers
    from megatron_ext.training.stage_folder import StageFolder

    folders = [StageFolder(walk.run_root, plan) for plan in walk.plans]
    for folder, plan in zip(folders, walk.plans, strict=True):
        folder.check(plan)
        check_loggers(plan)
        if plan.rl is not None:
            require_zstandard()
    beat = heartbeat()
    for number, (folder, plan) in enumerate(zip(folders, walk.plans, strict=True), 1):
        if folder.is_finished:
            _say(launch, f"finished before: {folder.stage_file}. Nothing to do.")
            continue
        if walk.is_arm:
            _say(launch, f"stage {number} of {len(folders)}: {plan.stage_id} ({plan.recipe})")
        outcome = _train(walk, plan, folder, launch, ending, beat)
        ending.folder = None
        release_memory()
        if outcome.reason == "cut" and number < len(folders):
            _say(launch, f"WARNING: {len(folders) - number} stages behind it are not begun: they need it finished")
            return


def _train(
    of: Walk, plan: StagePlan, folder: StageFolder, launch: Launch, ending: Ending, beat: Callable[[], None]
) -> Outcome:
    from megatron_ext.models.kernels import describe_layers
    from megatron_ext.runtime.parallel import Waits, process_groups
    from megatron_ext.runtime.roll_call import RollCall
    from megatron_ext.training import walk
    from megatron_ext.training.replaced_data import notes_on_replaced_data

    for note in notes_on_replaced_data(of.run_root, plan):
        _say(launch, f"WARNING: {note}")
    _say(launch, describe_layers(plan))
    waits = Waits(start=timedelta(seconds=of.timeouts.start_s), step=timedelta(seconds=of.timeouts.step_s))
    with walk.taken(folder, plan, is_main=launch.is_main):
        ending.folder = folder.path
        layout = plan.layout
        with process_groups(
            launch,
            tensor_model_parallel_size=layout.tensor_model_parallel_size,
            pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
            context_parallel_size=layout.context_parallel_size,
            timeout=waits.start,
        ) as groups:
            if launch.world_size > 1 and ending.roll_call is None:
                ending.roll_call = RollCall(launch)
            outcome = walk.walk(plan, folder, groups, is_main=launch.is_main, waits=waits, beat=beat)
        _conclude(plan, folder, outcome, launch, ending)
    return outcome


def _conclude(plan: StagePlan, folder: StageFolder, outcome: Outcome, launch: Launch, ending: Ending) -> None:
    step, total = outcome.state.step, plan.batch.total_steps
    checkpoint = folder.checkpoints / f"step_{step}"
    if outcome.reason == "stopped":
        raise StoppedError(
            f"stopped by {outcome.signal_name} after step {step} of {total}, saved as {checkpoint}. Run again to go on."
        )
    message = {
        "finished": f"finished: {checkpoint}",
        "cut": f"cut at step {step} of {total} (training.max_steps), saved as {checkpoint}; no stage.json",
    }[outcome.reason]
    if launch.is_main:
        ending.record(code=0, reason=outcome.reason, message=message)
    _say(launch, message)


def _say(launch: Launch, text: str) -> None:
    if launch.is_main:
        print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron_ext.run",
        description="Runs one stage of a recipe, or the unfinished stages of an arm, and goes on where it was "
        "stopped.\n\n"
        "  torchrun --nproc-per-node 2 -m megatron_ext.run recipes/demo/pretrain.yaml\n"
        "  torchrun --nproc-per-node 2 -m megatron_ext.run recipes/front_loading/arms/lmq-shq.yaml --stage sft",
        epilog="Exit codes: 0 finished or cut, 2 usage or recipe, 3 data, 4 environment, 5 diverged or stopped. "
        "torchrun itself always returns 1 for a failure; the code stands in the last line and in exit.json.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("recipe", type=Path, help="a stage recipe, such as recipes/demo/pretrain.yaml, or an arm")
    add("--stage", help="of an arm: only its stages of this kind (pretrain, sft, rl)")
    add("--site", type=Path, help="paths of this place (default: recipes/sites/laptop.yaml)")
    add("--run-root", type=Path, help="folder that holds stages/ (default: the site's run_root)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, such as training.max_steps=10; of an arm: in each of its stages",
    )
    add("--dry-run", action="store_true", help="print the plan and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
