"""`megatron-ext study run`: what is to be done, what would refuse it, and the run itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_tools.errors import DataError, UsageError
from megatron_ext.study.as_run import plan_to_record, write_record
from megatron_ext.study.finish import conclude
from megatron_ext.study.launcher import Task, study_folder
from megatron_ext.study.launchers import finders
from megatron_ext.study.local import LocalLauncher, Machine, command_of
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.questions import missing_questions
from megatron_ext.study.run_display import display
from megatron_ext.study.runner import Runner
from megatron_ext.study.state import node_states
from megatron_ext.study.status_view import counts
from megatron_ext.study.stop_request import StopRequest
from megatron_ext.study.study_lock import only_runner
from megatron_ext.study.study_plan import StageNode, StudyPlan
from megatron_ext.study.tasks import is_finished, make_task, node_name, nodes_of, parent_of

Only = Literal["pretrain", "sft", "rl", "evaluate"]

PROVISIONAL = "its data are not there yet, so its id will change"


@dataclass(frozen=True)
class RunRequest:
    """What of a study is to be run, and where.

    Attributes:
        study: Its file.
        site: A site file; None takes the default.
        run_root: None takes the site's.
        arms: Ids, `*` for any letters; () takes all.
        seeds: Replicates of every stage; None takes the study's.
        only: One kind of node; None takes all.
    """

    study: Path
    site: Path | None = None
    run_root: Path | None = None
    arms: tuple[str, ...] = ()
    seeds: int | None = None
    only: Only | None = None

    def plan(self, *, is_dry: bool = False) -> StudyPlan:
        """The plan; unless it is a dry run, everything must be there, and what stages share is prepared.

        Raises:
            UserError: It cannot be carried out.
        """
        if self.study.suffix == ".json":
            raise UsageError(f"{self.study}: this is the plan of a study; name the study file that it was made of")
        return make_study_plan(
            self.study,
            site=self.site,
            run_root=self.run_root,
            seeds=self.seeds,
            arms=self.arms,
            may_be_provisional=is_dry,
        )

    def record(self, plan: StudyPlan) -> StudyPlan:
        """What study.json is to hold once `plan`, which is this request's, is run."""
        return plan_to_record(plan, has_all_arms=not self.arms, site=self.site)


def default_workers() -> int:
    """A node for each GPU; one where there are none: what several gain there depends on memory too."""
    return len(Machine.found().gpus) or 1


def run_study(request: RunRequest, *, workers: int) -> None:
    """Runs what is unfinished of a study on this machine, and waits for the end.

    Args:
        request: What.
        workers: Nodes at once.

    Raises:
        TrainingError: Something failed, or the run was asked to stop.
        UserError: Something is missing; nothing was begun.
    """
    plan = request.plan()
    launcher = LocalLauncher(workers=workers, machine=Machine.found())
    tasks = tasks_of(plan, Path(plan.run_root), request)
    launcher.require(list(tasks.values()))
    require_questions(plan, tasks)
    run_here(plan, tasks, launcher, record=request.record(plan))


def run_here(
    plan: StudyPlan, tasks: Mapping[str, Task], launcher: LocalLauncher, *, record: StudyPlan, look_s: float = 1.0
) -> None:
    """Runs tasks on this machine, and waits for the end.

    Args:
        plan: The study.
        tasks: Of it, by name, parents first.
        launcher: Begins them.
        record: What study.json is to hold.
        look_s: Between two looks.

    Raises:
        TrainingError: Something failed, or the run was asked to stop.
        UserError: The study runs already, a node could not be begun, or what stands before all that is left is not
            among the tasks.
    """
    run_root = Path(plan.run_root)
    folder = study_folder(run_root, plan.name)
    with only_runner(folder):
        write_record(folder, record)
        _say(f"{plan.name}: {len(tasks)} nodes to run in {run_root}; {describe_machine(launcher, tasks)}")
        _warn_of_missing_parents(plan, run_root, tasks)
        with StopRequest() as asked, display(plan) as show:
            states = Runner(plan, run_root, tasks, launcher, _say, show, look_s).run(asked)
    conclude(plan, tasks, states, stopped_by=asked.to_stop)


def print_dry_run(request: RunRequest, *, workers: int) -> None:
    """Says what a run would begin, with which commands, and begins nothing.

    Raises:
        DataError: A run would be refused, for its suites ask what is not there.
    """
    plan = request.plan(is_dry=True)
    run_root = Path(plan.run_root)
    launcher = LocalLauncher(workers=workers, machine=Machine.found())
    tasks = tasks_of(plan, run_root, request)
    states = node_states(plan, run_root, finders(run_root))
    _say(f"{plan.name}: {counts(states)}; {len(tasks)} nodes to run in {run_root}")
    _say(describe_machine(launcher, tasks))
    _warn_of_missing_parents(plan, run_root, tasks)
    for task in tasks.values():
        after = f" after {', '.join(task.after)}" if task.after else ""
        provisional = f" ({PROVISIONAL})" if is_provisional(task) else ""
        _say(f"\n{task.name}: {states[task.name].state}{after}{provisional}\n  {shlex.join(command_of(task))}")
    require_questions(plan, tasks)


def tasks_of(plan: StudyPlan, run_root: Path, request: RunRequest) -> dict[str, Task]:
    """What is to be run: the unfinished nodes of the kind that was asked for, by name, parents first.

    Raises:
        UsageError: There are no nodes of this kind.
    """
    kinds = [*dict.fromkeys(stage.stage for stage in plan.stages), *(["evaluate"] if plan.evaluations else [])]
    if request.only is not None and request.only not in kinds:
        raise UsageError(f"--only {request.only}: {plan.path} has no such nodes; it has: {', '.join(kinds)}")
    return {
        node_name(node): make_task(plan, node, run_root, site=request.site)
        for node in nodes_of(plan)
        if not is_finished(run_root, node)
        and request.only in (None, node.stage if isinstance(node, StageNode) else "evaluate")
    }


def require_questions(plan: StudyPlan, tasks: Mapping[str, Task]) -> None:
    """Refuses suites that ask what is not there, before hours are spent on what they would judge.

    Raises:
        DataError: With each file that is missing.
    """
    missing = missing_questions(one.suite for one in plan.evaluations if node_name(one) in tasks)
    if missing:
        raise DataError("\n".join(missing) + "\n  Make them first, or leave them out of the suite.")


def describe_machine(launcher: LocalLauncher, tasks: Mapping[str, Task]) -> str:
    """How many nodes run at once, and what each gets of the machine."""
    widths = sorted({task.world_size for task in tasks.values()}) or [1]
    threads = ", ".join(
        f"{launcher.threads_of(width)}{'' if widths == [1] else f' with {width} processes'}" for width in widths
    )
    workers = f"{launcher.workers} worker{'s' if launcher.workers > 1 else ''}"
    machine = launcher.machine
    gpus = f"GPUs {', '.join(machine.gpus)} shared out, one for each process; " if machine.gpus else ""
    return f"{workers} on {machine.cores} cores; {gpus}OMP_NUM_THREADS {threads}"


def _warn_of_missing_parents(plan: StudyPlan, run_root: Path, tasks: Mapping[str, Task]) -> None:
    """Says which tasks cannot begin in this run, for it leaves out what stands before them."""
    for name, task in tasks.items():
        parent = parent_of(task.node)
        if parent is not None and parent not in tasks and not is_finished(run_root, plan.stage(parent)):
            _say(f"WARNING: {name} begins from {parent}, which is not finished and is left out of this run")


def is_provisional(task: Task) -> bool:
    """Whether the data of a stage are not there yet."""
    return isinstance(task.node, StageNode) and task.node.is_provisional


def _say(text: str) -> None:
    print(text, flush=True, file=sys.stdout)
