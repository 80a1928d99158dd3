"""How long a study remembers what Slurm answered, told where squeue is missing at first."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.study.launcher import Launched
from megatron_ext.study.slurm_jobs import SlurmJobs

LAUNCHED = {"a": Launched("slurm", 1, 0.0, handle={"job": "7_0", "log": "none"})}


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the only squeue would be; it is not there."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin" / "squeue"


def mend(squeue: Path) -> None:
    """Makes a squeue that knows of no job."""
    squeue.write_text("#!/bin/sh\n")
    squeue.chmod(0o755)


def test_a_slurm_that_cannot_be_asked_is_asked_again_only_when_the_answer_is_old(tmp_path: Path, squeue: Path) -> None:
    jobs = SlurmJobs(tmp_path, look_s=3600)
    for _ in range(2):
        found = jobs.poll(LAUNCHED)["a"]
        assert (found.status, found.is_reachable) == ("queued", False)
        assert "Slurm cannot be asked about it here: there is no squeue on this machine" in found.note
        mend(squeue)
    jobs.look_s = 0
    assert jobs.poll(LAUNCHED)["a"].status == "gone"


def test_a_job_that_is_new_since_a_refusal_is_asked_for(tmp_path: Path, squeue: Path) -> None:
    jobs = SlurmJobs(tmp_path, look_s=3600)
    jobs.poll(LAUNCHED)
    mend(squeue)
    found = jobs.poll(LAUNCHED | {"b": Launched("slurm", 1, 0.0, handle={"job": "8_0", "log": "none"})})
    assert {one.status for one in found.values()} == {"gone"}
