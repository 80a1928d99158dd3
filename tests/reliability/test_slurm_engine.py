"""A shard plan as an array of a real Slurm: whole, with a failing shard, killed, requeued, submitted again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.shards import status
from tests.support.shard_jobs import Corpus, content, make_corpus, run
from tests.support.slurm import PrivateSlurm, private_slurm

pytestmark = [pytest.mark.slow, pytest.mark.system]

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def slurm() -> Iterator[PrivateSlurm]:
    with private_slurm(cpus=2) as started:
        started.environment["PYTHONPATH"] = str(REPOSITORY)
        yield started


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("a corpus"))  # with a space, as folders have


@pytest.fixture
def output(tmp_path: Path, slurm: PrivateSlurm) -> Iterator[Path]:
    yield tmp_path / "all of it"
    for job in {job.partition("_")[0] for job, _ in slurm.queue()}:
        slurm.run("scancel", job)
    slurm.wait_for("the queue is empty", lambda: not slurm.queue())


def submit(slurm: PrivateSlurm, corpus: Corpus, output: Path, *options: str, text: str = "in.jsonl") -> str:
    """Submits and gives the number of the job."""
    command = ("--engine", "slurm", "--submit", *options)
    said = corpus.run(output, *command, environment=slurm.environment, text=text)
    assert said.startswith("exit 0\n"), said
    return said.partition("submitted job ")[2].split()[0]


def states(output: Path) -> list[str]:
    return [shard.state for shard in status(output)]


def is_over(slurm: PrivateSlurm, job: str) -> bool:
    return not any(name.startswith(f"{job}_") for name, _ in slurm.queue())


def array_of(output: Path) -> str:
    script = (output / "slurm" / "array.sbatch").read_text()
    return script.partition("#SBATCH --array=")[2].split()[0]


def shown_status(slurm: PrivateSlurm, output: Path) -> str:
    command = [sys.executable, "-m", "data_tools", "status", str(output)]
    return run(command, environment=slurm.environment, folder=REPOSITORY)


def writers(output: Path) -> list[int]:
    """The processes that write shards."""
    lines = {path: path.read_bytes().split(b"\0") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
    return [int(path.parent.name) for path, words in lines.items() if {b"data_tools", str(output).encode()} <= {*words}]


def row(table: str, name: str) -> str:
    """The value of a row of a printed table."""
    return next(line.split("│")[2].strip() for line in table.splitlines() if line.startswith(f"│ {name} "))


def test_an_array_writes_what_one_process_writes(
    slurm: PrivateSlurm, corpus: Corpus, output: Path, tmp_path: Path
) -> None:
    job = submit(slurm, corpus, output, "--sbatch", "partition=all", "time=5", "comment=two words")
    slurm.wait_for("all shards are done", lambda: set(states(output)) == {"done"})
    slurm.wait_for("the job is over", lambda: is_over(slurm, job))
    assert {slurm.job(f"{job}_{task}")["JobState"] for task in range(4)} == {"COMPLETED"}
    assert slurm.job(f"{job}_0")["TimeLimit"] == "00:05:00"
    assert len(status(output)) == 4
    assert content(output) == corpus.write_here(tmp_path / "one")
    assert len(list((output / "slurm").glob(f"{job}_*.log"))) == 4
    again = corpus.run(output, "--engine", "slurm", "--submit", environment=slurm.environment)
    assert "nothing to submit" in again
    assert not slurm.queue()


def test_a_shard_that_fails_fails_its_task_and_is_all_that_is_submitted_again(
    slurm: PrivateSlurm, corpus: Corpus, output: Path
) -> None:
    job = submit(slurm, corpus, output, text="bad.jsonl")
    slurm.wait_for("the job is over", lambda: is_over(slurm, job))
    ended = [slurm.job(f"{job}_{task}") for task in range(4)]
    assert [task["ExitCode"] for task in ended] == ["0:0", "3:0", "0:0", "0:0"]
    assert states(output) == ["done", "failed", "done", "done"]
    assert "bad.jsonl:301: malformed" in shown_status(slurm, output)
    second = submit(slurm, corpus, output, "--on-error", "skip", text="bad.jsonl")
    assert array_of(output) == "1"
    slurm.wait_for("all shards are done", lambda: set(states(output)) == {"done"})
    slurm.wait_for("the job is over", lambda: is_over(slurm, second))


def test_fewer_tasks_than_shards_share_them(slurm: PrivateSlurm, corpus: Corpus, output: Path) -> None:
    job = submit(slurm, corpus, output, "--tasks", "2", "--max-running", "1")
    assert array_of(output) == "0-1%1"
    slurm.wait_for("the job is over", lambda: is_over(slurm, job))
    assert states(output) == ["done"] * 4


def test_status_knows_what_runs_and_what_waits_and_nothing_is_submitted_twice(
    slurm: PrivateSlurm, corpus: Corpus, output: Path
) -> None:
    """Two of four shards run, as the node has two CPUs; they are stopped there, so that there is time to look."""
    options = ("--bpe", "tokenizers", "--tasks", "4", "--shard-bytes", "5000000")
    job = submit(slurm, corpus, output, *options, text="long.jsonl")
    slurm.wait_for("two shards are in work", lambda: len(list(output.glob("*.lock"))) == 2)
    for writer in writers(output):
        os.kill(writer, signal.SIGSTOP)
    table = shown_status(slurm, output)
    assert table.startswith("exit 3\n")
    assert (row(table, "running"), row(table, "queued")) == ("2", "2")
    assert row(table, f"job {job}") == "2 tasks run, 2 wait"
    again = corpus.run(
        output, *options, "--engine", "slurm", "--submit", environment=slurm.environment, text="long.jsonl"
    )
    assert "nothing to submit" in again
    assert row(again, "tasks in the queue") == "4"
    refused = corpus.run(
        output, *options, "--engine", "slurm", "--tasks", "3", environment=slurm.environment, text="long.jsonl"
    )
    assert refused.startswith("exit 2\n")
    assert f"--tasks 3: job {job} in the queue shares the shards among 4" in refused
    overwritten = corpus.run(
        output, *options, "--engine", "slurm", "--overwrite", environment=slurm.environment, text="long.jsonl"
    )
    assert f"--overwrite: job {job} in the queue writes" in overwritten


def test_a_task_killed_midway_is_missing_and_is_submitted_again(
    slurm: PrivateSlurm, corpus: Corpus, output: Path
) -> None:
    options = ("--bpe", "tokenizers", "--shard-bytes", "8000000")
    job = submit(slurm, corpus, output, *options, text="long.jsonl")
    slurm.wait_for("shard 1 is in work", (output / "shard-00001.bin.partial").exists)
    slurm.run("scancel", "--signal=KILL", "--full", f"{job}_1")
    slurm.wait_for("the job is over", lambda: is_over(slurm, job))
    assert states(output) == ["done", "missing", "done"]
    submit(slurm, corpus, output, *options, text="long.jsonl")
    assert array_of(output) == "1"
    slurm.wait_for("all shards are done", lambda: states(output) == ["done"] * 3)


def test_a_requeued_task_starts_again_and_finishes(slurm: PrivateSlurm, corpus: Corpus, output: Path) -> None:
    options = ("--bpe", "tokenizers", "--shard-bytes", "8000000")
    job = submit(slurm, corpus, output, *options, text="long.jsonl")
    slurm.wait_for("shard 1 is in work", (output / "shard-00001.bin.partial").exists)
    slurm.run("scontrol", "requeue", f"{job}_1")
    slurm.wait_for("all shards are done", lambda: states(output) == ["done"] * 3)
    slurm.wait_for("the job is over", lambda: is_over(slurm, job))
    ended = slurm.job(f"{job}_1")
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")


def test_without_submit_the_script_is_ready_for_sbatch(slurm: PrivateSlurm, corpus: Corpus, output: Path) -> None:
    said = corpus.run(output, "--engine", "slurm", environment=slurm.environment)
    assert not slurm.queue()
    assert f"submit it with: sbatch {output}/slurm/array.sbatch" in said.replace("\n", "")
    slurm.run("sbatch", str(output / "slurm" / "array.sbatch"))
    slurm.wait_for("all shards are done", lambda: states(output) == ["done"] * 4)


def test_what_sbatch_refuses_is_shown(slurm: PrivateSlurm, corpus: Corpus, output: Path) -> None:
    said = corpus.run(
        output, "--engine", "slurm", "--submit", "--sbatch", "partition=none", environment=slurm.environment
    )
    assert said.startswith("exit 4\n")
    assert "invalid partition specified: none" in said


def test_without_sbatch_the_script_is_written_and_said(corpus: Corpus, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    said = corpus.run(tmp_path / "out", "--engine", "slurm", "--submit", environment=environment)
    assert said.startswith("exit 4\n")
    assert "--submit: there is no sbatch on this machine" in said
