"""What engines are given: the script of an array, its tasks, the states of a queue, the options of each."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.atomic_files import is_being_written, only_writer
from data_tools.cli.shards import add_engine
from data_tools.dataset import shard_prefix
from data_tools.engines.slurm import Array, Queue, arguments_without, with_queue, write_script
from data_tools.errors import UsageError
from data_tools.shards import ShardStatus

WriteLines = Callable[..., Path]


def directives(script: Path) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]


def command_of(script: Path) -> list[str]:
    return shlex.split(script.read_text().splitlines()[-1])


def test_the_script_names_the_tasks_the_folder_and_what_was_passed_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    array = Array(Path("out"), 12, ["tokenize", "--input", "a b.jsonl"], ["partition=cpu", "exclusive", "c=4"])
    script = write_script(array, {7, 0, 1, 2})
    assert directives(script)[1:] == [
        "--array=0-2,7",
        f"--chdir={tmp_path}",
        f"--output={tmp_path}/out/slurm/%A_%a.log",
        "--open-mode=append",
        "--requeue",
        "--partition=cpu",
        "--exclusive",
        "-c 4",
    ]
    assert command_of(script)[2:] == [
        "-m",
        "data_tools",
        "tokenize",
        "--input",
        "a b.jsonl",
        "--workers",
        "$SLURM_CPUS_PER_TASK",
        "--task",
        "$SLURM_ARRAY_TASK_ID/12",
    ]


def test_workers_are_the_cpus_of_a_task_and_running_tasks_are_bounded(tmp_path: Path) -> None:
    array = Array(tmp_path, 3, ["tokenize", "--workers", "6"], workers=6, max_running=2)
    script = write_script(array, [0, 1, 2])
    assert "--array=0-2%2" in directives(script)
    assert "--cpus-per-task=6" in directives(script)
    assert command_of(script)[4:] == ["tokenize", "--workers", "6", "--task", "$SLURM_ARRAY_TASK_ID/3"]


def test_the_script_says_what_wrote_it_and_for_what(tmp_path: Path) -> None:
    comments = [line for line in write_script(Array(tmp_path, 3, []), [0]).read_text().splitlines() if line[:2] == "# "]
    assert comments == [
        f"# 3 tasks share the shards of {tmp_path}; data-tools wrote this.",
        "# A finished shard is not written again, so a task may run any number of times.",
    ]


def test_two_folders_have_two_names_and_one_folder_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Array(Path("a"), 3, []).name == Array(tmp_path / "a", 3, []).name
    assert Array(Path("a"), 3, []).name != Array(Path("b"), 3, []).name
    assert Array(Path("a"), 3, []).name.endswith("-3")


@pytest.mark.parametrize("option", ["array=0-3", "--job-name=mine", "o=log"])
def test_an_option_that_the_script_sets_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--sbatch {option}: .* is set by --engine; leave it out"):
        write_script(Array(tmp_path, 1, [], [option]), [0])


def test_a_task_gets_the_command_without_what_concerns_the_engine() -> None:
    own = argparse.ArgumentParser(add_help=False)
    add_engine(own)
    command = (
        "data-tools tokenize --input a 'b c' --engine=slurm --key text --sbatch partition=cpu mem=4G --submit "
        "--tasks 3 --max-running 2 --shard-bytes 5M --append-eod"
    )
    assert arguments_without(own, command) == [
        "tokenize", "--input", "a", "b c", "--key", "text", "--shard-bytes", "5M", "--append-eod"
    ]  # fmt: skip


def test_a_queue_tells_running_shards_from_queued_ones_and_from_those_nobody_comes_to(tmp_path: Path) -> None:
    """Of three tasks 0 runs and is at shard 3, 1 waits, 2 is over: shards 2 and 5 are left as they are."""
    prefixes = [shard_prefix(tmp_path, number) for number in range(7)]
    states = ["done", "missing", "failed", "missing", "failed", "missing", "missing"]
    Path(f"{prefixes[3]}.lock").touch()
    Path(f"{prefixes[4]}.lock").touch()  # left by one that was killed
    shards = [ShardStatus(prefix, state) for prefix, state in zip(prefixes, states, strict=True)]
    found = Queue("12", 3, frozenset({0}), frozenset({1}))
    assert [shard.state for shard in with_queue(shards, found)] == [
        "done", "queued", "failed", "running", "queued", "missing", "queued"
    ]  # fmt: skip
    assert with_queue(shards, None) == shards


def test_a_lock_tells_whether_its_writer_lives(tmp_path: Path) -> None:
    prefix = tmp_path / "a"
    assert not is_being_written(prefix)
    with only_writer(prefix):
        assert is_being_written(prefix)
    Path(f"{prefix}.lock").touch()  # left by one that was killed
    assert not is_being_written(prefix)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--engine slurm", "--engine slurm: divides shards among processes; give --shard-bytes too"),
        ("--task 0/2", "--task: divides shards among processes; give --shard-bytes too"),
        ("--shard-bytes 1M --submit", "--submit: concerns --engine slurm, not local"),
        ("--shard-bytes 1M --engine ray --tasks 3", "--tasks: concerns --engine slurm, not ray"),
        ("--shard-bytes 1M --engine slurm --task 0/2", "--task: concerns --engine local, not slurm"),
        ("--shard-bytes 1M --max-running 3", "--max-running: concerns --engine slurm and ray, not local"),
        ("--shard-bytes 1M --engine slurm --tasks 0", "--tasks: 0 is below 1"),
        ("--shard-bytes 1M --task 0/2 --overwrite", "--overwrite: would remove what other tasks have written"),
    ],
)
def test_an_option_that_nothing_would_take_is_refused(
    options: str, said: str, tiny_tokenizer: Path, write_lines: WriteLines, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines({"text": "the cat"})
    given = ["--input", str(source), "--tokenizer", str(tiny_tokenizer), "--output", str(source.parent / "out")]
    assert main(["tokenize", *given, *options.split()]) == 2
    assert said in capsys.readouterr().err
    assert os.listdir(source.parent) == [source.name]


def test_status_answers_where_slurm_does_not(
    tiny_tokenizer: Path,
    write_lines: WriteLines,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_lines({"text": "the cat"})
    squeue = source.parent / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho 'no controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent))
    output = source.parent / "out"
    given = ["--input", str(source), "--tokenizer", str(tiny_tokenizer), "--output", str(output)]
    assert main(["tokenize", *given, "--shard-bytes", "1M"]) == 0
    assert main(["status", str(output)]) == 0
    assert capsys.readouterr().err == ""
    write_script(Array(output, 1, []), [0])
    assert main(["status", str(output)]) == 0
    assert capsys.readouterr().err == "WARNING: squeue: no controller; what a Slurm job is doing is not known\n"
