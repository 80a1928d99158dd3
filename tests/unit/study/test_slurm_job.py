"""Which ends of a run send its job back to Slurm's queue: what another try can mend, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from megatron_ext.study.slurm_job import JOB

STUBS = """
folder=$PWD launched={} exit_line=END: finished=$PWD/stage.json
saved() { :; }
run() { cat "$PWD/said"; return $CODE; }
scontrol() { :; }
sleep() { :; }
"""


def ended(tmp_path: Path, said: str, code: int) -> list[str]:
    """What a job writes to its log behind what its run has said."""
    (tmp_path / "said").write_text(f"{said}\n")
    variables = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_NODELIST": "n1", "CODE": str(code)}
    done = subprocess.run(
        ["bash", "-uc", STUBS + JOB],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    log = (tmp_path / "attempt_1.log").read_text()
    return log.partition(f"{said}\n")[2].splitlines()


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        ("srun: error: n1: task 0: Killed", 137, "a process was killed"),
        ("  exitcode  : -9 (pid: 77)", 1, "a process was killed"),  # torchrun's summary
        ("E1128 api.py:1002] failed (exitcode: -9) local_rank: 0 (pid: 77)", 1, "a process was killed"),  # ft_launcher
        ("  exitcode  : -15 (pid: 76)\n  exitcode  : -6 (pid: 77)", 1, "a process was killed"),  # NCCL's watchdog
        ("error: another rank was lost. No sign of rank 1 (n2): gone", 1, "a rank was lost"),
        ("rank 1: error: another rank was lost. Not all 2 ranks met", 1, "a rank was lost"),  # rank 0 never came
    ],
)
def test_a_job_whose_ranks_were_killed_or_lost_goes_back(tmp_path: Path, said: str, code: int, reason: str) -> None:
    assert ended(tmp_path, said, code) == [f"study: back to the queue: {reason}"]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("error: step 2: loss is nan", 5),
        ("  exitcode  : 5 (pid: 76)\n  exitcode  : -15 (pid: 77)", 1),  # the other rank, ended by torchrun
        ("rank 1 says: error: another rank was lost", 1),
    ],
)
def test_a_job_that_failed_by_itself_ends(tmp_path: Path, said: str, code: int) -> None:
    assert ended(tmp_path, said, code) == [f"END: {code}"]
