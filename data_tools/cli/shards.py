"""The options of `tokenize` and `chat` that concern shards, and the engines that write them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.cli.output import print_table, warn
from data_tools.errors import UsageError

if TYPE_CHECKING:
    from data_tools.job import DatasetJob
    from data_tools.manifest import Manifest
    from data_tools.shards import ShardPlan
    from data_tools.tokenize import TokenizeResult

_ONLY_OF = {
    "task": ("local",),
    "tasks": ("slurm",),
    "submit": ("slurm",),
    "sbatch": ("slurm",),
    "max_running": ("slurm", "ray"),
    "ray_address": ("ray",),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds them in a group of their own."""
    group = parser.add_argument_group("shards: several processes or machines write one dataset")
    group.add_argument(
        "--shard-bytes", metavar="N", help="write PREFIX/shard-00000 and so on, each of this much input: 20G"
    )
    group.add_argument(
        "--task", metavar="I/N", help="of the shards write every Nth from I, 0 to N-1 (default: the Slurm array's task)"
    )
    add_engine(group)


def add_engine(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Adds those that decide where shards are written; the command of a task is without them."""
    group.add_argument(
        "--engine",
        choices=("local", "slurm", "ray"),
        default="local",
        help="write the shards in this process (default), or those that are missing as a Slurm array or on Ray",
    )
    group.add_argument("--submit", action="store_true", help="slurm: submit the script instead of only writing it")
    group.add_argument(
        "--tasks", type=int, metavar="N", help="slurm: tasks of the array (default one a shard, to 1000)"
    )
    group.add_argument(
        "--max-running", type=int, metavar="N", help="slurm: tasks that run at once; ray: shards that are in flight"
    )
    group.add_argument(
        "--sbatch",
        nargs="+",
        metavar="KEY=VALUE",
        help="slurm: options of sbatch without dashes: partition=cpu account=me time=4:00:00 mem=16G cpus-per-task=8",
    )
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="ray: of its head, auto for this machine's (default: start one here)"
    )


def are_asked_for(options: argparse.Namespace) -> bool:
    """Whether shards are to be written.

    Raises:
        UsageError: If an option is given that nothing would take.
    """
    if options.shard_bytes is None:
        if options.task is not None:
            raise UsageError("--task: divides shards among processes; give --shard-bytes too")
        if options.engine != "local":
            raise UsageError(f"--engine {options.engine}: divides shards among processes; give --shard-bytes too")
    for name, engines in _ONLY_OF.items():
        if getattr(options, name) not in (None, False) and options.engine not in engines:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option}: concerns --engine {' and '.join(engines)}, not {options.engine}")
    for name in ("tasks", "max_running"):
        if (given := getattr(options, name)) is not None and given < 1:
            raise UsageError(f"--{name.replace('_', '-')}: {given} is below 1")
    return options.shard_bytes is not None


def run(job: DatasetJob, options: argparse.Namespace) -> None:
    """Freezes the plan and writes the shards, or has them written.

    Raises:
        UserError: As the engines do.
    """
    from data_tools.shards import freeze_plan, make_plan, parse_task

    plan = make_plan(job, shard_bytes=_bytes(options.shard_bytes))
    if job.overwrite and options.engine == "local" and parse_task(options.task).of > 1:
        raise UsageError("--overwrite: would remove what other tasks have written; remove PREFIX instead")
    if job.overwrite and options.engine == "slurm":
        _refuse_a_queue(job.output)
    freeze_plan(job.output, plan, overwrite=job.overwrite)
    if options.engine == "slurm":
        _slurm(job, plan, options)
    else:
        {"local": _local, "ray": _ray}[options.engine](job, plan, options)


def _local(job: DatasetJob, plan: ShardPlan, options: argparse.Namespace) -> None:
    from data_tools.parts import parts_of_task
    from data_tools.progress import shown
    from data_tools.shards import parse_task, tokenize_shards

    task = parse_task(options.task)
    own = parts_of_task(plan.parts, task=task.number, num_tasks=task.of)
    with shown(f"shards of {job.output.name}", sum(part.size for _, part in own)) as progress:
        results = tokenize_shards(job, plan, task, progress)
    _show(f"{job.output}: task {task.number} of {task.of} is done", job, plan, [result for _, result in results], ())


def _ray(job: DatasetJob, plan: ShardPlan, options: argparse.Namespace) -> None:
    from data_tools.engines.ray import Cluster, write_on_ray
    from data_tools.progress import shown
    from data_tools.shards import status

    shards = status(job.output)
    numbered = zip(enumerate(plan.parts), shards, strict=True)
    missing = [part for part, shard in numbered if shard.state != "done"]
    cluster = Cluster(options.ray_address, options.workers or 1, options.max_running)
    results: Sequence[tuple[int, TokenizeResult]] = []
    if missing:
        size = sum(part.size for _, part in missing)
        with shown(f"shards of {job.output.name} on Ray", size) as progress:
            results = write_on_ray(job, missing, cluster, progress)
    before = [shard.manifest for shard in shards if shard.manifest]
    _show(f"{job.output}: done", job, plan, [result for _, result in results], before)


def _show(
    title: str, job: DatasetJob, plan: ShardPlan, results: Sequence[TokenizeResult], before: Sequence[Manifest]
) -> None:
    manifests = [*before, *(result.manifest for result in results)]
    if rejected := sum(manifest.rejected for manifest in manifests):
        warn(f"{rejected:,} lines were rejected; each shard lists its own in .rejects.jsonl")
    warn_of_slow_engine(manifests)
    left_out = sum(manifest.left_out for manifest in manifests)
    rows = [
        ["shards", f"{len(manifests):,} of {len(plan.parts):,}"],
        ["written now", f"{sum(not result.was_done for result in results):,}"],
        ["documents", f"{sum(manifest.documents for manifest in manifests):,}"],
        *([["left out by --where", f"{left_out:,} ({job.where})"]] if job.where else []),
        ["tokens", f"{sum(manifest.tokens for manifest in manifests):,}"],
    ]
    print_table(title, ["", ""], rows)


def warn_of_slow_engine(manifests: Sequence[Manifest]) -> None:
    """Says why tokenizers encoded where gigatoken would be far faster."""
    for reason in sorted({manifest.engine.reason for manifest in manifests if manifest.engine} - {""}):
        warn(f"encoded by tokenizers, the slow library: gigatoken does not take it: {reason}")


def _slurm(job: DatasetJob, plan: ShardPlan, options: argparse.Namespace) -> None:
    from data_tools.engines.slurm import MAX_TASKS, Array, arguments_without, queue, submit, write_script
    from data_tools.shards import status

    found = queue(job.output)
    num_tasks = options.tasks or min(len(plan.parts), MAX_TASKS)
    if found and found.num_tasks != num_tasks:
        raise UsageError(
            f"--tasks {num_tasks}: job {found.job} in the queue shares the shards among {found.num_tasks}; "
            f"give --tasks {found.num_tasks}, or scancel it"
        )
    shards = status(job.output)
    states = Counter(shard.state for shard in shards)
    unfinished = {number % num_tasks for number, shard in enumerate(shards) if shard.state != "done"}
    in_queue = found.running | found.waiting if found else frozenset()
    tasks = unfinished - in_queue
    rows = [["shards done", f"{states['done']:,} of {len(shards):,}"]]
    if unfinished & in_queue:
        rows.append(["tasks in the queue", f"{len(unfinished & in_queue):,}"])
    if not tasks:
        print_table(f"{job.output}: nothing to submit", ["", ""], rows)
        return
    own = argparse.ArgumentParser(add_help=False)
    add_engine(own)
    own.add_argument("--overwrite", action="store_true")
    array = Array(
        job.output,
        num_tasks,
        arguments_without(own, job.command),
        options.sbatch or (),
        options.workers,
        options.max_running,
    )
    script = write_script(array, tasks)
    rows += [["tasks to run", f"{len(tasks):,} of {num_tasks:,}"], ["script", str(script)]]
    title = f"submitted job {submit(script)}" if options.submit else "written, not submitted"
    print_table(f"{job.output}: {title}", ["", ""], rows)
    if not options.submit:
        print(f"submit it with: sbatch {script}")
    print(f"watch it with:  python -m data_tools status {job.output}")


def _refuse_a_queue(output: Path) -> None:
    from data_tools.engines.slurm import queue

    if found := queue(output):
        raise UsageError(f"--overwrite: job {found.job} in the queue writes {output}; scancel it first")


def _bytes(written: str) -> int:
    from data_tools.quantities import parse_count

    try:
        return parse_count(written.replace("G", "B"))  # data_tools counts in billions, disks in gigabytes
    except ValueError as error:
        raise UsageError(f"--shard-bytes: {error}") from None
