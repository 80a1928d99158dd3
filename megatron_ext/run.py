"""The walk of one stage.

    torchrun --nproc-per-node 2 -m megatron_ext.run recipes/demo/pretrain.yaml

recipe -> plan -> model, optimizer, cursor, objective -> train -> checkpoints -> stage.json. Up to the
line that joins the process groups nothing has touched torch, a device or the disk: whatever is wrong
with recipe, data or folder ends the run there.
"""

from __future__ import annotations

import argparse
import errno
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.errors import SetupError, TrainingError, UserError
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.render import print_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.runtime.determinism import be_deterministic
from megatron_ext.runtime.launch import Launch
from megatron_ext.training.file_list import checkpoints_of
from megatron_ext.training.parent_stage import parent_checkpoint

if TYPE_CHECKING:
    from megatron_ext.training.loop import Outcome
    from megatron_ext.training.stage_folder import StageFolder

_OTHER_RANK_WAIT_S = 5.0
"""Errors are mostly the same on all ranks: the others let the main rank speak, and torchrun end them."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


def main(argv: list[str] | None = None) -> int:
    """Runs a recipe; returns the exit code of data_tools/errors.py."""
    arguments = _parser().parse_args(argv)
    launch = Launch.from_environment()
    ending = Ending()
    try:
        _run(arguments, launch, ending)
    except UserError as error:
        return _fail(error, launch, ending)
    except KeyboardInterrupt:
        error = TrainingError(
            "ended by SIGINT at once. Run again to go on from the newest checkpoint, or to begin where there is none."
        )
        return _fail(error, launch, ending)
    except Exception as bug:
        if isinstance(bug, OSError) and bug.errno in (*_DISK_ERRORS, *_TOO_MANY_FILES):
            return _fail(_environment_error(bug), launch, ending)
        if launch.is_main:
            ending.record(code=1, reason="crashed", message=f"{type(bug).__name__}: {bug}")
        raise
    return 0


class Ending:
    """Where the end of this run is recorded, once the folder is this run's."""

    folder: StageFolder | None = None

    def record(self, *, code: int, reason: str, message: str) -> None:
        """Writes exit.json: code, reason, message."""
        if self.folder is None:
            return
        from megatron_ext.training.stage_folder import write_json

        try:
            write_json(self.folder.exit_file, {"code": code, "reason": reason, "message": message})
        except OSError as error:  # the disk may be what ended the run; its message must not be lost for this one
            print(f"WARNING: {self.folder.exit_file}: not written ({error.strerror})", file=sys.stderr)


def _environment_error(error: OSError) -> SetupError:
    remedy = "Make room or mend the disk"
    if error.errno in _TOO_MANY_FILES:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = f"A process may have {soft:,} open files here, at most {hard:,}"
        remedy = f"{limit}. Raise that (ulimit -n {max(2 * soft, 4096)})"
    return SetupError(
        f"{error.filename or 'a file of the run'}: {error.strerror}.\n"
        f"  The checkpoints that are there are untouched. {remedy}, and run again to go on."
    )


def _run(arguments: argparse.Namespace, launch: Launch, ending: Ending) -> None:
    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    run_root = Path(arguments.run_root or loaded.site.run_root)
    plan = make_stage_plan(
        loaded, world_size=launch.world_size, may_be_provisional=arguments.dry_run, run_root=run_root
    )
    if arguments.stage not in (None, plan.stage):
        raise UserError(f"--stage {arguments.stage}: {arguments.recipe} is a {plan.stage} stage. Leave --stage out.")
    if arguments.dry_run:
        if launch.is_main:
            print_plan(plan, run_root=run_root)
        return
    _say(
        launch,
        f"{plan.stage_id}: {plan.model.name}, {plan.batch.total_steps} steps -> {run_root}/stages/{plan.stage_id}",
    )
    for sentence in plan.roundings:
        _say(launch, f"WARNING: {sentence}")
    _require_beginning(plan, run_root)
    _execute(plan, run_root, launch, ending)


def _require_beginning(plan: StagePlan, run_root: Path) -> None:
    """Refuses a stage that could not train here, or whose parent is not finished.

    Before torch is imported, which takes seconds on every rank, unless te is needed: whoever lacks that should not
    hear first that a parent must be trained.
    """
    own = run_root / "stages" / plan.stage_id
    if (own / STAGE_FILE).is_file():
        return
    if plan.layout.backend == "te" or plan.layout.context_parallel_size > 1:
        from megatron_ext.runtime.warnings import quiet_known_warnings

        quiet_known_warnings()
        from megatron_ext.models.backends import choose_backend

        choose_backend(plan)
    needs_reference = plan.rl is not None and plan.rl.has_reference
    if needs_reference or not checkpoints_of(own / "checkpoints"):
        parent_checkpoint(run_root, plan)


def _execute(plan: StagePlan, run_root: Path, launch: Launch, ending: Ending) -> None:
    """Everything from here on needs torch."""
    from megatron_ext.runtime.warnings import quiet_known_warnings

    quiet_known_warnings()
    if plan.execution.deterministic:
        be_deterministic()
    from megatron_ext.datasets.rollout_file import require_zstandard
    from megatron_ext.models.kernels import describe_layers
    from megatron_ext.runtime.parallel import process_groups
    from megatron_ext.training import walk
    from megatron_ext.training.metrics import check_loggers
    from megatron_ext.training.replaced_data import notes_on_replaced_data
    from megatron_ext.training.stage_folder import StageFolder

    folder = StageFolder(run_root, plan)
    folder.check(plan)
    check_loggers(plan)
    if plan.rl is not None:
        require_zstandard()
    if folder.is_finished:
        _say(launch, f"finished before: {folder.stage_file}. Nothing to do.")
        return
    for note in notes_on_replaced_data(run_root, plan):
        _say(launch, f"WARNING: {note}")
    _say(launch, describe_layers(plan))
    with walk.taken(folder, plan, is_main=launch.is_main):
        ending.folder = folder
        layout = plan.layout
        with process_groups(
            launch,
            tensor_model_parallel_size=layout.tensor_model_parallel_size,
            pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
            context_parallel_size=layout.context_parallel_size,
        ) as groups:
            outcome = walk.walk(plan, folder, groups, is_main=launch.is_main)
        _conclude(plan, folder, outcome, launch, ending)


def _conclude(plan: StagePlan, folder: StageFolder, outcome: Outcome, launch: Launch, ending: Ending) -> None:
    step, total = outcome.state.step, plan.batch.total_steps
    checkpoint = folder.checkpoints / f"step_{step}"
    if outcome.reason == "stopped":
        raise TrainingError(
            f"stopped by {outcome.signal_name} after step {step} of {total}, saved as {checkpoint}. Run again to go on."
        )
    message = {
        "finished": f"finished: {checkpoint}",
        "cut": f"cut at step {step} of {total} (training.max_steps), saved as {checkpoint}; no stage.json",
    }[outcome.reason]
    if launch.is_main:
        ending.record(code=0, reason=outcome.reason, message=message)
    _say(launch, message)


def _fail(error: UserError, launch: Launch, ending: Ending) -> int:
    code = error.exit_code
    if launch.is_main:
        ending.record(code=code, reason=type(error).__name__, message=str(error))
    else:
        time.sleep(_OTHER_RANK_WAIT_S)
        if isinstance(error, TrainingError):  # all ranks agreed on it, and the main one has said it
            return code
    speaker = "" if launch.is_main else f"rank {launch.rank}: "
    print(f"{speaker}error: {error}\n{speaker}megatron_ext.run: exit code {code}", file=sys.stderr, flush=True)
    return code


def _say(launch: Launch, text: str) -> None:
    if launch.is_main:
        print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron_ext.run",
        description="Runs one stage of a recipe, or goes on where it was stopped.\n\n"
        "  torchrun --nproc-per-node 2 -m megatron_ext.run recipes/demo/pretrain.yaml",
        epilog="Exit codes: 0 finished or cut, 2 usage or recipe, 3 data, 4 environment, 5 diverged or stopped. "
        "torchrun itself always returns 1 for a failure; the code stands in the last line and in exit.json.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("recipe", type=Path, help="a stage recipe, such as recipes/demo/pretrain.yaml")
    add("--stage", help="the stage to run; must be the recipe's")
    add("--site", type=Path, help="paths of this place (default: recipes/sites/laptop.yaml)")
    add("--run-root", type=Path, help="folder that holds stages/ (default: the site's run_root)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, such as training.max_steps=10")
    add("--dry-run", action="store_true", help="print the plan and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
