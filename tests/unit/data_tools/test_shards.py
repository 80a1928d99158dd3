"""Shards: one plan, any number of tasks, the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.progress import NoProgress
from data_tools.shards import (
    Task,
    freeze_plan,
    make_plan,
    parse_task,
    shard_prefix,
    status,
    tokenize_shards,
    totals,
)
from data_tools.tokenize import TokenizeJob
from data_tools.tokenizer import Tokenizer

WriteLines = Callable[..., Path]


def run(job: TokenizeJob, task: str = "0/1", *, shard_bytes: int = 80) -> list[tuple[int, bool]]:
    """Runs a task; gives the number of each of its shards and whether it was done before."""
    plan = make_plan(job, shard_bytes=shard_bytes)
    freeze_plan(job.output, plan, overwrite=job.overwrite)
    results = tokenize_shards(job, plan, parse_task(task), NoProgress())
    return [(number, result.was_done) for number, result in results]


@pytest.fixture
def job(tiny_tokenizer: Path, write_lines: WriteLines) -> TokenizeJob:
    """Nine lines of 22 bytes and one of 23: shards of 88, 88 and 45 bytes."""
    source = write_lines(*({"text": f"the cat {number}"} for number in range(1, 11)))
    return TokenizeJob((source,), tiny_tokenizer, source.parent / "out", append_eod=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".bin", ".idx", ".origin")}


def test_the_shards_hold_the_documents_in_their_order(job: TokenizeJob) -> None:
    assert run(job) == [(0, False), (1, False), (2, False)]
    tokenizer = Tokenizer.load(job.tokenizer)
    readers = [IndexedReader(shard_prefix(job.output, number)) for number in range(3)]
    texts = [tokenizer.decode(reader[at].tolist()) for reader in readers for at in range(len(reader))]
    assert texts == [f"the cat {number}<|endoftext|>" for number in range(1, 11)]
    assert [len(reader) for reader in readers] == [4, 4, 2]


def test_tasks_together_write_what_one_writes(job: TokenizeJob) -> None:
    run(job)
    other = replace(job, output=job.output.parent / "other")
    assert run(other, "1/2") == [(1, False)]
    assert [shard.state for shard in status(other.output)] == ["missing", "done", "missing"]
    assert run(other, "0/2") == [(0, False), (2, False)]
    assert content(other.output) == content(job.output)


def test_a_second_run_writes_what_is_missing_and_nothing_else(job: TokenizeJob) -> None:
    run(job)
    before = content(job.output)
    shard_prefix(job.output, 1).with_suffix(".manifest.json").unlink()
    for suffix in (".bin", ".idx", ".origin"):
        shard_prefix(job.output, 1).with_suffix(suffix).unlink()
    assert run(job) == [(0, True), (1, False), (2, True)]
    assert content(job.output) == before


def test_another_job_or_a_changed_input_is_not_mixed_in(job: TokenizeJob) -> None:
    run(job)
    with pytest.raises(
        DataError, match=r"plan\.json: is the plan of another job.*: settings, settings.append_eod differ"
    ):
        run(replace(job, append_eod=False))
    with pytest.raises(DataError, match="shard_bytes, shards differ"):
        run(job, shard_bytes=50)
    job.inputs[0].write_text(job.inputs[0].read_text().replace("10", "20"))
    with pytest.raises(DataError, match="or its input was changed: files differ"):
        run(job)
    assert run(replace(job, overwrite=True)) == [(0, False), (1, False), (2, False)]


def test_a_shard_that_fails_leaves_the_others_and_says_why(job: TokenizeJob) -> None:
    lines = job.inputs[0].read_text().splitlines()
    lines[6] = "{"
    job.inputs[0].write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"1 of 3 shards failed:\n  shard-00001: .*in\.jsonl:7: malformed"):
        run(job)
    states = status(job.output)
    assert [shard.state for shard in states] == ["done", "failed", "done"]
    assert "malformed" in states[1].said
    run(replace(job, on_error="skip"))
    assert [shard.state for shard in status(job.output)] == ["done"] * 3
    assert totals(status(job.output))["rejected"] == 1
    assert totals(status(job.output))["documents"] == 9


def test_a_record_without_the_key_at_the_start_of_a_shard_is_one_bad_record(
    tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    lines = [{"text": "the cat 1"}] * 4 + [{"other": "a cat"}] + [{"text": "the cat 2"}]
    job = TokenizeJob((write_lines(*lines),), tiny_tokenizer, tmp_path / "out", on_error="skip")
    run(job)
    shards = status(job.output)
    assert [shard.manifest and shard.manifest.rejected_by_reason for shard in shards] == [{}, {"missing key": 1}]


def test_each_shard_lists_its_own_rejects(job: TokenizeJob, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--rejects: each shard lists its own"):
        make_plan(replace(job, on_error="skip", rejects=tmp_path / "all.jsonl"), shard_bytes=80)


def test_a_shard_of_the_file_before_it_was_changed_is_damaged(job: TokenizeJob) -> None:
    run(job)
    plan = json.loads((job.output / "plan.json").read_bytes())
    plan["files"][0]["mtime_ns"] += 1
    (job.output / "plan.json").write_text(json.dumps(plan))
    shards = status(job.output)
    assert [shard.state for shard in shards] == ["damaged"] * 3
    assert "was made from another plan: time of change of the input" in shards[0].said


def test_a_damaged_shard_is_not_called_done(job: TokenizeJob) -> None:
    run(job)
    shard_prefix(job.output, 0).with_suffix(".bin").write_bytes(b"")
    assert [shard.state for shard in status(job.output)] == ["damaged", "done", "done"]


def test_held_out_documents_of_shards_have_a_folder_of_their_own(job: TokenizeJob) -> None:
    run(replace(job, hold_out_percent=50.0))
    train, held_out = (
        sum(len(IndexedReader(p.with_suffix(""))) for p in job.output.parent.glob(f"{name}/*.idx"))
        for name in ("out", "out.validation")
    )
    assert train + held_out == 10
    assert 0 < held_out < 10


def test_a_task_is_named_or_that_of_the_slurm_array(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_task(None) == Task(0, 1)
    for name, value in (("MIN", "1"), ("ID", "4"), ("COUNT", "8")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert parse_task(None) == Task(3, 8)
    assert parse_task("1/2") == Task(1, 2)
    with pytest.raises(UsageError, match="--task: '1' is not of the form i/n"):
        parse_task("1")


def test_a_slurm_array_with_a_step_leaves_no_shard_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number in (1, 3, 5):  # --array=1-5:2
        for name, value in (("MIN", "1"), ("ID", str(number)), ("COUNT", "3"), ("STEP", "2")):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        found.append(parse_task(None))
    assert found == [Task(0, 3), Task(1, 3), Task(2, 3)]


def test_tasks_beyond_the_last_are_refused(job: TokenizeJob) -> None:
    with pytest.raises(UsageError, match="--task: 2/2: tasks are numbered 0 to 1"):
        run(job, "2/2")


def test_the_plan_says_which_part_makes_which_shard(job: TokenizeJob) -> None:
    run(job)
    plan = json.loads((job.output / "plan.json").read_bytes())
    assert plan["shards"] == [
        {"file": 0, "start": 0, "end": 88},
        {"file": 0, "start": 88, "end": 176},
        {"file": 0, "start": 176, "end": 221},
    ]
