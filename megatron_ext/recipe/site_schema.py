"""What belongs to one place and to no recipe: where its files are, how long ranks wait, how it starts jobs."""

from __future__ import annotations

import re
from typing import Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from data_tools.schema import Count, Section

JobKind = Literal["pretrain", "sft", "rl", "evaluate"]
"""What a job is for: a kind of stage, or the evaluation of one."""

OWN_OPTIONS = (
    *("array", "a", "job-name", "J", "output", "o", "error", "e", "open-mode", "chdir", "D", "dependency", "d"),
    *("requeue", "no-requeue", "signal", "kill-on-invalid-dep", "ntasks", "n", "ntasks-per-node", "export"),
)
"""Options of sbatch that the script sets, because what it does rests on them."""

_INSTEAD = {
    **dict.fromkeys(("time", "t"), "time"),
    **dict.fromkeys(("partition", "p"), "partition"),
    **dict.fromkeys(("account", "A"), "account"),
    **dict.fromkeys(("qos", "q"), "qos"),
    **dict.fromkeys(("nodes", "N"), "nodes"),
    **dict.fromkeys(("cpus-per-task", "c"), "cpus_per_node"),
    "gpus-per-node": "gpus_per_node",
}
"""Options of sbatch that have a key."""


class SlurmJob(Section):
    """What jobs of one kind may have of their own."""

    nodes: Count | None = Field(
        default=None,
        gt=0,
        description="Nodes of a job, every one of them full of ranks; null: as few ranks as the stage's layout needs.",
    )
    time: str | None = Field(
        default=None,
        pattern=r"^(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})$",
        description="Time limit as sbatch takes it, such as 24:00:00 or 2-00; null: the partition's.",
    )
    partition: str | None = Field(default=None, description="Partition; null: Slurm's default.")
    account: str | None = Field(default=None, description="Account that is charged; null: yours.")
    qos: str | None = Field(default=None, description="Quality of service; null: yours.")
    options: tuple[str, ...] = Field(
        default=(), description="Further options of sbatch, without their dashes: mem=0, constraint=h100, exclusive."
    )

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            name = option.lstrip("-").partition("=")[0]
            if name in OWN_OPTIONS:
                raise ValueError(f"{option!r}: the script sets {name} itself; leave it out")
            if name in _INSTEAD:
                raise ValueError(f"{option!r}: there is a key for it; write {_INSTEAD[name]}")
        return options


class SlurmRecipe(SlurmJob):
    """How jobs are submitted to Slurm."""

    gpus_per_node: Count = Field(
        default=0, ge=0, description="GPUs of a node, asked for as --gpus-per-node; 0: none are asked for."
    )
    ranks_per_node: Count | None = Field(
        default=None, gt=0, description="Processes of a full node; null: one for each GPU, or one where there is none."
    )
    cpus_per_node: Count | None = Field(
        default=None,
        gt=0,
        description="CPUs of a full node; fewer ranks ask for their share; null: what Slurm gives one task, often a "
        "single CPU.",
    )
    save_s: Count = Field(
        default=300,
        gt=0,
        description="Seconds before the time limit at which a run is told to save and go back to the queue: more than "
        "one step and one checkpoint take. Slurm may send it up to 60 s earlier.",
    )
    hang_s: Count | None = Field(
        default=None,
        gt=0,
        description="A rank that ends no step for this long is killed, whatever it does: longer than the longest step, "
        "validation and checkpoint together. nvidia-resiliency-ext's ft_launcher then takes torchrun's place; null: "
        "torchrun, and nobody watches.",
    )
    modules: tuple[str, ...] = Field(default=(), description="Environment modules to load, in order.")
    setup: tuple[str, ...] = Field(
        default=(), description="Lines of bash that come before, such as source /apps/venv/bin/activate."
    )
    environment: tuple[str, ...] = Field(
        default=(), description="Environment variables of the jobs, NAME=VALUE, such as NCCL_DEBUG=WARN."
    )
    python: str | None = Field(
        default=None, description="Python on the compute nodes; null: the one that submits. In a container: python."
    )
    container: str = Field(
        default="", description="Words before the command on every node: apptainer exec --nv /images/train.sif."
    )
    srun_options: tuple[str, ...] = Field(
        default=(), description="Options of srun, without their dashes: container-image=/images/train.sqsh."
    )
    master_port: Count | None = Field(
        default=None,
        ge=1024,
        le=65535,
        description="Port of a job's first node, where its ranks meet; null: one made of the job's number, so that two "
        "jobs may share a node.",
    )
    pretrain: SlurmJob | None = Field(
        default=None, description="nodes, time, partition, account, qos, options for pretraining stages."
    )
    sft: SlurmJob | None = Field(
        default=None, description="nodes, time, partition, account, qos, options for sft stages."
    )
    rl: SlurmJob | None = Field(
        default=None, description="nodes, time, partition, account, qos, options for rl stages."
    )
    evaluate: SlurmJob | None = Field(
        default=None, description="nodes, time, partition, account, qos, options for evaluations."
    )

    @field_validator("environment")
    @classmethod
    def _check_environment(cls, environment: tuple[str, ...]) -> tuple[str, ...]:
        for setting in environment:
            if not re.fullmatch(r"[A-Za-z_]\w*=.*", setting, re.DOTALL):
                raise ValueError(f"{setting!r} is no setting; write NAME=VALUE")
        return environment

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        for kind in (None, *get_args(JobKind)):
            time = self.job(kind).time
            if time is not None and minutes_of(time) * 60 <= self.save_s:
                raise ValueError(
                    f"time {time!r} is not longer than save_s {self.save_s} s, so that a run would be told to save as "
                    "it begins; raise time or lower save_s"
                )
        return self

    def job(self, kind: JobKind | None) -> SlurmJob:
        """What holds for jobs of a kind: its own keys, and for those it leaves out the general ones."""
        own: SlurmJob | None = getattr(self, kind) if kind is not None else None
        general = {name: getattr(self, name) for name in SlurmJob.model_fields}
        return SlurmJob(**general | ({name: getattr(own, name) for name in own.model_fields_set} if own else {}))

    @property
    def ranks(self) -> int:
        """Processes of a full node."""
        return self.ranks_per_node or self.gpus_per_node or 1


def minutes_of(time: str) -> float:
    """A time limit in minutes.

    Source: sbatch(1): minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, ….

    >>> minutes_of("90"), minutes_of("1:30"), minutes_of("2:00:00"), minutes_of("1-12")
    (90.0, 1.5, 120.0, 2160.0)
    """
    days, dash, rest = time.rpartition("-")
    parts = [float(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]  # minutes come first
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return float(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


class TimeoutsRecipe(Section):
    """How long the ranks of a run wait for each other. No stage's identity depends on it."""

    step_s: Count = Field(
        default=600,
        gt=0,
        description="Seconds that a rank waits for the others within a step. Then it gives them up, and the run ends.",
    )
    start_s: Count = Field(
        default=1800,
        gt=0,
        description="The same while ranks meet, load and do the first step of a run, and while a checkpoint is saved.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.start_s < self.step_s:
            raise ValueError(f"start_s {self.start_s} is less than step_s {self.step_s}; the start takes longer")
        return self


class SiteRecipe(Section):
    """One place: its paths, how long ranks wait, and how it starts jobs."""

    data_root: str = Field(
        default="data", description="Folder of datasets and tokenizers; relative to the working directory."
    )
    run_root: str = Field(default="runs", description="Folder of stages; relative to the working directory.")
    timeouts: TimeoutsRecipe = Field(
        default=TimeoutsRecipe(), description="How long the ranks of a run wait for each other."
    )
    slurm: SlurmRecipe | None = Field(default=None, description="How `study run --launcher slurm` submits jobs here.")
