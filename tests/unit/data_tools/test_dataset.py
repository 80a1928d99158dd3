"""A dataset opens the same way whether it is one pair or shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.atomic_files import only_writer
from data_tools.dataset import find_dataset, is_built, read_dataset
from data_tools.errors import DataError
from data_tools.manifest import read_manifest, write_manifest
from data_tools.merge import merge
from data_tools.progress import NoProgress
from data_tools.shards import freeze_plan, make_plan, parse_task, status, tokenize_shards
from data_tools.tokenize import TokenizeJob, tokenize
from data_tools.verify import prefixes_of

WriteLines = Callable[..., Path]


@pytest.fixture
def job(tiny_tokenizer: Path, write_lines: WriteLines) -> TokenizeJob:
    """Ten lines in shards of 4, 4 and 2 documents."""
    source = write_lines(*({"text": f"the cat {number}"} for number in range(1, 11)))
    return TokenizeJob((source,), tiny_tokenizer, source.parent / "out", append_eod=True)


def write_shards(job: TokenizeJob, task: str = "0/1") -> None:
    plan = make_plan(job, shard_bytes=80)
    freeze_plan(job.output, plan, overwrite=job.overwrite)
    tokenize_shards(job, plan, parse_task(task), NoProgress())


def test_one_pair_is_its_own_only_shard(job: TokenizeJob) -> None:
    manifest = tokenize(job, NoProgress()).manifest
    dataset = read_dataset(job.output)
    assert [(shard.prefix, shard.manifest) for shard in dataset.shards] == [(str(job.output), manifest)]
    assert (dataset.documents, dataset.tokens, dataset.data_id) == (10, manifest.tokens, manifest.data_id)


def test_a_folder_of_shards_is_their_sum_in_order(job: TokenizeJob) -> None:
    write_shards(job)
    dataset = read_dataset(job.output)
    assert [Path(shard.prefix).name for shard in dataset.shards] == ["shard-00000", "shard-00001", "shard-00002"]
    assert [shard.manifest.documents for shard in dataset.shards] == [4, 4, 2]
    assert dataset.documents == 10
    assert dataset.tokens == tokenize(replace(job, output=job.output.parent / "one"), NoProgress()).manifest.tokens
    ids = [read_manifest(shard.prefix).data_id for shard in dataset.shards]
    assert dataset.data_id == hashlib.sha256("\n".join(ids).encode()).hexdigest()
    assert dataset.append_eod


def test_the_tokens_of_each_domain_are_summed_where_every_shard_counts_them(job: TokenizeJob) -> None:
    write_shards(job)
    shards = read_dataset(job.output).shards
    halves = [{"code": 1, "math": shard.manifest.tokens - 1} for shard in shards]
    for shard, half in zip(shards, halves, strict=True):
        write_manifest(shard.prefix, replace(shard.manifest, tokens_by_domain=half))
    dataset = read_dataset(job.output)
    assert dataset.tokens_by_domain == {"code": 3, "math": dataset.tokens - 3}
    write_manifest(shards[1].prefix, replace(shards[1].manifest, tokens_by_domain=None))
    assert read_dataset(job.output).tokens_by_domain is None


def test_a_folder_is_no_dataset_before_its_last_shard(job: TokenizeJob) -> None:
    write_shards(job, "1/2")
    assert is_built(job.output)
    with pytest.raises(DataError, match="2 of 3 shards are not finished, shard-00000 the first; run the same tokenize"):
        read_dataset(job.output)


def test_nothing_at_a_prefix_is_none_or_refused(tmp_path: Path) -> None:
    assert not is_built(tmp_path / "a")
    assert find_dataset(tmp_path / "a") is None
    with pytest.raises(DataError, match="no such file; make it with"):
        read_dataset(tmp_path / "a")


def test_two_forms_at_one_prefix_are_refused(job: TokenizeJob) -> None:
    tokenize(job, NoProgress())
    write_shards(job)
    with pytest.raises(DataError, match=r"both .*out\.manifest\.json and .*out/plan\.json stand there; remove one"):
        read_dataset(job.output)


def test_numbered_pairs_are_shards(job: TokenizeJob) -> None:
    for number in (1, 0):
        tokenize(replace(job, output=Path(f"{job.output}-0000{number}")), NoProgress())
    assert [shard.prefix[-6:] for shard in read_dataset(job.output).shards] == ["-00000", "-00001"]


def test_shards_that_do_not_go_together_are_refused(job: TokenizeJob) -> None:
    for number in (0, 1):
        tokenize(replace(job, output=Path(f"{job.output}-0000{number}"), append_eod=number == 0), NoProgress())
    with pytest.raises(DataError, match="out-00001: append_eod: False, but .*out-00000 has True"):
        read_dataset(job.output)


def test_a_shard_of_another_plan_is_refused(job: TokenizeJob) -> None:
    write_shards(job)
    prefix = job.output / "shard-00001"
    manifest = read_manifest(prefix)
    write_manifest(prefix, replace(manifest, sources=[replace(manifest.sources[0], start=7)]))
    with pytest.raises(DataError, match=r"another plan: first byte of the input: it has 7, .*plan\.json says 88"):
        read_dataset(job.output)
    assert [shard.state for shard in status(job.output)] == ["done", "damaged", "done"]


def test_overwriting_leaves_no_shard_of_the_old_plan(job: TokenizeJob) -> None:
    write_shards(replace(job, hold_out_percent=50.0))
    freeze_plan(job.output, make_plan(replace(job, hold_out_percent=50.0), shard_bytes=80), overwrite=True)
    assert [path.name for path in job.output.iterdir()] == ["plan.json"]
    assert [path.name for path in Path(f"{job.output}.validation").iterdir()] == ["plan.json"]


def test_shards_that_an_earlier_plan_held_out_do_not_stay_beside_one_that_holds_them_too(job: TokenizeJob) -> None:
    write_shards(replace(job, hold_out_percent=50.0))
    with pytest.raises(
        DataError, match=r"out\.validation: holds documents that an earlier job held out; give --hold-out"
    ):
        write_shards(replace(job, overwrite=True))
    assert read_dataset(job.output).shards[0].manifest.hold_out_percent == 50.0


def test_a_shard_that_is_being_written_is_not_removed(job: TokenizeJob) -> None:
    write_shards(job)
    shard = job.output / "shard-00001"
    with only_writer(shard), pytest.raises(DataError, match="shard-00001: another process is writing it; wait for it"):
        write_shards(replace(job, overwrite=True))
    assert len(read_dataset(job.output).shards) == 3


def test_held_out_shards_are_a_dataset_too(job: TokenizeJob) -> None:
    write_shards(replace(job, hold_out_percent=50.0))
    train, held_out = read_dataset(job.output), read_dataset(f"{job.output}.validation")
    assert {shard.manifest.split for shard in held_out.shards} == {"validation"}
    assert train.documents + held_out.documents == 10
    assert 0 < held_out.documents < 10


def test_an_empty_file_is_an_empty_shard(job: TokenizeJob, write_lines: WriteLines) -> None:
    both = replace(job, inputs=(*job.inputs, write_lines(name="none.jsonl")))
    write_shards(both)
    assert [shard.manifest.documents for shard in read_dataset(job.output).shards] == [4, 4, 2, 0]
    merged = merge(prefixes_of(job.output), job.output.parent / "merged", NoProgress()).manifest
    assert merged.documents == 10
