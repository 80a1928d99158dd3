"""The launchers by name."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.study.launcher import Launcher
from megatron_ext.study.local import LocalLauncher, Machine
from megatron_ext.study.slurm_jobs import SlurmJobs


def finders(run_root: Path) -> list[Launcher]:
    """One launcher of each kind, which finds again what it has started; asked only where something of its kind was."""
    return [LocalLauncher(workers=1, machine=Machine(cores=1, gpus=())), SlurmJobs(run_root)]
