"""A tokenization killed at any moment leaves no dataset that would be accepted."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from data_tools.errors import DataError
from data_tools.manifest import Manifest, check_files, read_manifest
from data_tools.progress import NoProgress
from data_tools.tokenize import TokenizeJob, tokenize
from tests.support.child_process import exit_code_of

WriteLines = Callable[..., Path]
_EVENTS = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir"}


def killed_at(event_number: int, job: TokenizeJob) -> bool:
    """Runs the job in a process that kills itself before its n-th file system call on the output; True if it died.

    Python's audit hooks see every open, rename and removal, so counting them reaches every state that
    the files pass through, without a change to the code under test.
    """
    return exit_code_of(run_until, event_number, job) == -signal.SIGKILL


def run_until(event_number: int, job: TokenizeJob) -> None:
    seen = 0

    def hook(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if name in _EVENTS and str(arguments[0]).startswith(str(job.output)):
            seen += 1
            if seen == event_number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    tokenize(job, NoProgress())


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


def test_a_new_dataset_is_accepted_only_when_it_is_whole(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "the cat"}, b"{", {"text": "sat"})
    reference = TokenizeJob((source,), tiny_tokenizer, source.parent / "reference", on_error="skip")
    whole = tokenize(reference, NoProgress()).manifest
    moment, outcomes = 1, []
    while True:
        job = TokenizeJob((source,), tiny_tokenizer, source.parent / f"out{moment}", on_error="skip")
        died = killed_at(moment, job)
        manifest = accepted(job.output)
        outcomes.append(manifest is not None)
        assert manifest is None or manifest.data_id == whole.data_id
        assert tokenize(job, NoProgress()).manifest.data_id == whole.data_id  # a re-run completes it
        if not died:
            break
        moment += 1
    assert moment >= 10
    assert outcomes.index(True) >= 9  # not before its last renames
    assert outcomes[-1]


def test_a_dataset_being_replaced_is_the_old_one_or_none_or_the_new_one(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    old_source = write_lines({"text": "xyz"}, name="old.jsonl")
    new_source = write_lines({"text": "zyx"}, name="new.jsonl")  # as long: sizes cannot tell them apart
    moment, outcomes = 1, []
    while True:
        prefix = new_source.parent / f"out{moment}"
        old = tokenize(TokenizeJob((old_source,), tiny_tokenizer, prefix), NoProgress()).manifest
        job = TokenizeJob((new_source,), tiny_tokenizer, prefix, overwrite=True)
        died = killed_at(moment, job)
        manifest = accepted(prefix)
        outcomes.append("none" if manifest is None else "old" if manifest.data_id == old.data_id else "new")
        new = tokenize(job, NoProgress()).manifest  # a re-run completes it
        assert accepted(prefix) == new
        if not died:
            break
        moment += 1
    assert sorted(outcomes, key=["old", "none", "new"].index) == outcomes
    assert set(outcomes) == {"old", "none", "new"}
