"""A job killed at any moment leaves no dataset that would be accepted, and nothing that a second run cannot mend."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from data_tools.chat import ChatJob
from data_tools.errors import DataError
from data_tools.job import DatasetJob
from data_tools.manifest import Manifest, check_files, read_manifest
from data_tools.progress import NoProgress
from data_tools.shards import Task, freeze_plan, make_plan, tokenize_shards
from data_tools.tokenize import TokenizeJob, write_dataset
from tests.support.child_process import exit_code_of

WriteLines = Callable[..., Path]
NewJob = Callable[[str], DatasetJob]
EVENTS = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.link"}
CALLS = {"write", "fsync"}


def write(kind: str, job: DatasetJob) -> None:
    if kind == "tokenize":
        write_dataset(job, NoProgress())
        return
    plan = make_plan(job, shard_bytes=1_000)
    freeze_plan(job.output, plan, overwrite=job.overwrite)
    tokenize_shards(job, plan, Task(), NoProgress())


def is_killed(kind: str, job: DatasetJob, *, moment: int) -> bool:
    """Runs the job in a process that kills itself at a moment; False if it ended before.

    Python's audit hooks see every open, rename, link and removal below the job's folder, and its profiler every
    fsync, and the first write of several in a row, of this package, so counting both reaches every state that the
    files pass through, without a change to the code under test.
    """
    return exit_code_of(run_until, moment, kind, job) == -signal.SIGKILL


def run_until(moment: int, kind: str, job: DatasetJob) -> None:
    seen: list[object] = []

    def count(what: object) -> None:
        if seen[-1:] != [what]:
            seen.append(what)
        if len(seen) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(name: str, arguments: tuple[object, ...]) -> None:
        if name in EVENTS and str(arguments[0]).startswith(str(job.output.parent)):
            count((name, *arguments))

    def profile(frame: FrameType, event: str, function: object) -> None:
        name = getattr(function, "__name__", "")
        if event == "c_call" and name in CALLS and frame.f_globals.get("__package__") == "data_tools":
            count((name, frame.f_code))

    sys.addaudithook(hook)
    sys.setprofile(profile)
    write(kind, job)


def accepted(prefix: Path) -> Manifest | None:
    """The manifest at a prefix if readers would accept the dataset; its files are checked in full."""
    try:
        manifest = read_manifest(prefix)
        check_files(prefix, manifest)
    except DataError:
        return None
    for suffix, expected in ((".bin", manifest.bin_sha256), (".idx", manifest.idx_sha256)):
        assert hashlib.sha256(Path(f"{prefix}{suffix}").read_bytes()).hexdigest() == expected
    return manifest


def data_ids(folder: Path) -> dict[str, str | None]:
    """Of each dataset that a job has in its folder, None where readers refuse it."""
    prefixes = [Path(str(path).removesuffix(".manifest.json")) for path in sorted(folder.rglob("*.manifest.json"))]
    found = {str(prefix.relative_to(folder)): accepted(prefix) for prefix in prefixes}
    return {name: manifest and manifest.data_id for name, manifest in found.items()}


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of all files; of manifests only that they are there: they say when they were made."""
    return {
        str(path.relative_to(folder)): b"" if path.name.endswith(".manifest.json") else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def new_job(kind: str, tiny_tokenizer: Path, write_lines: WriteLines) -> NewJob:
    """The same job in a folder that it makes; of six documents it holds out about half."""
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ab"}]
    record = {"messages": said} if "chat" in kind else {"text": "the cat"}
    source = write_lines(*(record | {"id": str(number)} for number in range(6)), b"{")
    make = ChatJob if "chat" in kind else TokenizeJob

    def new(folder: str) -> DatasetJob:
        output = source.parent / folder / "set"
        output.parent.mkdir()
        return make((source,), tiny_tokenizer, output, on_error="skip", hold_out_percent=50.0)

    return new


@pytest.mark.parametrize("kind", ["tokenize", "chat in a shard"])
def test_a_new_dataset_is_accepted_only_when_it_is_whole_and_a_second_run_leaves_what_an_undisturbed_one_does(
    kind: str, new_job: NewJob
) -> None:
    write(kind, whole := new_job("whole"))
    expected, ids = content(whole.output.parent), data_ids(whole.output.parent)
    assert None not in ids.values()
    moment, accepted_sets = 1, []
    while True:
        job = new_job(f"killed{moment}")
        folder = job.output.parent
        was_killed = is_killed(kind, job, moment=moment)
        found = {name: data_id for name, data_id in data_ids(folder).items() if data_id}
        assert found.items() <= ids.items()
        assert all(name.replace("set", "set.validation", 1) in found for name in found if "validation" not in name)
        accepted_sets.append(len(found))
        write(kind, job)
        assert content(folder) == expected, f"moment {moment}"
        assert data_ids(folder) == ids
        if not was_killed:
            break
        moment += 1
    assert moment >= 40
    assert accepted_sets == sorted(accepted_sets)
    assert {0, len(ids)} <= set(accepted_sets)


def test_a_dataset_being_replaced_is_the_old_one_or_none_or_the_new_one(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    old_source = write_lines({"text": "xyz"}, name="old.jsonl")
    new_source = write_lines({"text": "zyx"}, name="new.jsonl")  # as long: sizes cannot tell them apart
    moment, outcomes = 1, []
    while True:
        prefix = new_source.parent / f"killed{moment}" / "set"
        old = write_dataset(TokenizeJob((old_source,), tiny_tokenizer, prefix), NoProgress()).manifest
        job = TokenizeJob((new_source,), tiny_tokenizer, prefix, overwrite=True)
        was_killed = is_killed("tokenize", job, moment=moment)
        manifest = accepted(prefix)
        outcomes.append("none" if manifest is None else "old" if manifest.data_id == old.data_id else "new")
        new = write_dataset(job, NoProgress()).manifest  # a re-run completes it
        assert accepted(prefix) == new
        if not was_killed:
            break
        moment += 1
    assert sorted(outcomes, key=["old", "none", "new"].index) == outcomes
    assert set(outcomes) == {"old", "none", "new"}
