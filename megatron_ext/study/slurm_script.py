"""The script of one array of Slurm: one node of a study with one seed or several, a task for each.

    RUN_ROOT/studies/STUDY/slurm/NODE.sbatch         of the array whose first node is NODE
    RUN_ROOT/studies/STUDY/slurm/<job>_<task>.log    what Slurm itself says of a task, such as DUE TO TIME LIMIT
    RUN_ROOT/studies/STUDY/nodes/NODE/attempt_N.log  what the N-th start of a node printed

It can be read, and submitted by hand: `sbatch NODE.sbatch`. What must be over before it begins is not in it
(`--dependency` is given to sbatch); a stage whose parent is not finished refuses to run.

Signals to the script, which runs on a job's first node:

| signal | from | what becomes of the run, and of the job |
|--------|------|-----------------------------------------|
| USR1 | Slurm, `save_s` before the time limit | it saves; the job goes back to the queue |
| USR2 | `study cancel` | it saves; the job ends |
| TERM | Slurm, which ends the job (scancel, preemption) and tells the run itself | it saves; Slurm decides |

A job also goes back to the queue where a process was killed or a rank was lost. Either way only if this start has
saved something, or if it was begun fewer than four times: else it would turn in circles.

Source: sbatch(1), srun(1), scontrol(1) of Slurm 22.05. `scontrol requeue` of an array's number alone would requeue
all its tasks; srun takes --cpus-per-task from no sbatch since 22.05. torchrun kills workers 30 s after SIGTERM
unless TORCH_ELASTIC_SHUTDOWN_TIMEOUT says more, and leaves them alone at a second one (torch 2.13,
distributed/launcher/api.py, distributed/elastic/multiprocessing/api.py).
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from data_tools.atomic_files import write_atomically
from data_tools.slurm import directive, log_folder, ranges
from megatron_ext.evaluate.results import RESULTS
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.recipe.site_schema import JobKind, SlurmRecipe
from megatron_ext.study.launcher import EXIT_LINE, Task
from megatron_ext.study.slurm_job import JOB
from megatron_ext.study.study_plan import StageNode
from megatron_ext.study.tasks import work_folder


@dataclass(frozen=True)
class JobSize:
    """Where the ranks of a job run.

    Attributes:
        nodes: Nodes of it.
        ranks_per_node: Processes on each.
    """

    nodes: int
    ranks_per_node: int

    @property
    def ranks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.ranks_per_node


def kind_of(task: Task) -> JobKind:
    """What a task's job is for."""
    return task.node.stage if isinstance(task.node, StageNode) else "evaluate"


def job_size(task: Task, slurm: SlurmRecipe) -> JobSize:
    """Where a task's ranks go: on as few nodes as its layout needs, or on as many as the site says."""
    nodes = slurm.job(kind_of(task)).nodes
    if nodes is not None:
        return JobSize(nodes, slurm.ranks)
    least = -(-task.world_size // slurm.ranks)
    return JobSize(least, -(-task.world_size // least))


def write_script(file: Path, name: str, members: dict[int, Task], slurm: SlurmRecipe, *, run_root: Path) -> None:
    """Writes the script of an array.

    Args:
        file: `slurm/NODE.sbatch` in the study's folder, which is there.
        name: Of the job.
        members: What its tasks run, by their numbers; they differ in nothing but seeds.
        slurm: How jobs are submitted here.
        run_root: Folder that holds `stages/`.
    """
    first = next(iter(members.values()))
    lines = [
        "#!/bin/bash",
        f"# {_title(first, len(members))}; written by megatron-ext study run. By hand: sbatch {shlex.quote(str(file))}",
        *(directive(option) for option in _options(file, name, members, slurm)),
        "",
        "case $SLURM_ARRAY_TASK_ID in",
        *(line for index, task in members.items() for line in _case(index, task, run_root)),
        '*) echo "error: this script has no task $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;',
        "esac",
        f"launched={shlex.quote(_launched(file))}",
        f"exit_line={shlex.quote(EXIT_LINE)}",
        f"python={shlex.quote(slurm.python or sys.executable)}",
        *_surroundings(slurm),
        *_run(job_size(first, slurm), slurm),
    ]
    write_atomically(file, ("\n".join(lines) + "\n" + JOB).encode())


def _title(task: Task, seeds: int) -> str:
    node = task.node
    what = node.recipe if isinstance(node, StageNode) else f"{node.suite} on {node.stage_id}"
    return f"{what}, {seeds} seeds" if seeds > 1 else what


def _options(file: Path, name: str, members: dict[int, Task], slurm: SlurmRecipe) -> list[str]:
    first = next(iter(members.values()))
    job, size = slurm.job(kind_of(first)), job_size(first, slurm)
    given = {
        "gpus-per-node": size.ranks_per_node if slurm.gpus_per_node else None,
        "cpus-per-task": _cpus(size, slurm),
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
    }
    return [
        f"job-name={name}",
        f"array={ranges(sorted(members))}",
        f"nodes={size.nodes}",
        "ntasks-per-node=1",
        *(f"{option}={value}" for option, value in given.items() if value is not None),
        *job.options,
        f"signal=B:USR1@{slurm.save_s}",
        "requeue",
        "export=ALL",
        "kill-on-invalid-dep=yes",
        f"chdir={Path.cwd()}",
        "open-mode=append",
        f"output={log_folder(file.parent)}/%A_%a.log",
    ]


def _cpus(size: JobSize, slurm: SlurmRecipe) -> int | None:
    """CPUs of each of a job's nodes: all of a full one, else its ranks' share, so that others may have the rest."""
    if slurm.cpus_per_node is None:
        return None
    return -(-slurm.cpus_per_node * size.ranks_per_node // slurm.ranks)


def _case(index: int, task: Task, run_root: Path) -> list[str]:
    work = work_folder(run_root, task.node).resolve()
    is_stage = isinstance(task.node, StageNode)
    return [
        f"{index})",
        f"    folder={shlex.quote(str(task.folder.resolve()))}",
        f"    finished={shlex.quote(str(work / (STAGE_FILE if is_stage else RESULTS)))}",
        f"    saved() {{ ls -ld {shlex.quote(str(work))}/{'checkpoints/step_*' if is_stage else '*.jsonl*'}; }}",
        f"    command=({shlex.join(['-m', task.module, *task.arguments])}) ;;",
    ]


def _launched(file: Path) -> str:
    """launch.json of a start, of which the job knows the rest."""
    handle = {"job": "@JOB@", "log": f"{file.parent}/@JOB@.log"}
    record = {"kind": "slurm", "attempt": "@ATTEMPT@", "at": "@AT@", "command": ["sbatch", str(file)], "handle": handle}
    return json.dumps(record).replace('"@ATTEMPT@"', "@ATTEMPT@").replace('"@AT@"', "@AT@")


def _surroundings(slurm: SlurmRecipe) -> list[str]:
    settings = [setting.partition("=") for setting in slurm.environment]
    return [
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={slurm.save_s}",
        *(f"export {name}={shlex.quote(value)}" for name, _, value in settings),
        *(f"module load {shlex.quote(module)}" for module in slurm.modules),
        *slurm.setup,
    ]


def _run(size: JobSize, slurm: SlurmRecipe) -> list[str]:
    """The function that starts the ranks: on each node one process, which is torchrun where there are several ranks."""
    options = [f"--{option.lstrip('-')}" for option in slurm.srun_options]
    srun = ["srun", f"--nodes={size.nodes}", f"--ntasks={size.nodes}", "--kill-on-bad-exit=1", *options]
    start = f"{shlex.join(srun)} ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}}"
    python = f'{slurm.container} "$python"'.strip()
    if size.ranks == 1 and slurm.hang_s is None:
        return [f'run() {{ {start} {python} "${{command[@]}}"; }}']
    return [
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"port={slurm.master_port or '$((10000 + SLURM_JOB_ID % 20000))'}",
        "run() {  # torchrun reads PET_NODE_RANK; which node it is on, only srun's task knows",
        f"    {start} \\",
        "        bash -c 'PET_NODE_RANK=$SLURM_NODEID exec \"$@\"' - \\",
        f"        {python} -m {_launcher(slurm)} --nnodes={size.nodes} \\",
        f"        --nproc-per-node={size.ranks_per_node} \\",
        f'        {_meeting(slurm)} "${{command[@]}}"',
        "}",
    ]


def _launcher(slurm: SlurmRecipe) -> str:
    """The module that starts a node's ranks."""
    return "torch.distributed.run" if slurm.hang_s is None else "nvidia_resiliency_ext.fault_tolerance.launcher"


def _meeting(slurm: SlurmRecipe) -> str:
    """How nodes meet; ft_launcher (0.7.0) takes no other rendezvous, and is told when a rank hangs."""
    if slurm.hang_s is None:
        return '--master-addr="$first" --master-port="$port"'
    first_beat = 2 * slurm.hang_s  # loading comes before the first step
    return (
        '--rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID" '
        f"--ft-rank-heartbeat-timeout={slurm.hang_s} --ft-initial-rank-heartbeat-timeout={first_beat}"
    )
