"""A blend of more pairs than the process may have open files is read as any other, and replaced files are noticed."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from data_tools.dataset import read_dataset
from data_tools.document_view import Documents as DocumentsView
from data_tools.errors import DataError
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.datasets.conversations import ConversationCursor, held_out_conversations
from megatron_ext.datasets.documents import Documents, Span
from megatron_ext.datasets.open_files import OpenFiles
from tests.support.child_process import exit_code_of
from tests.support.pencil_project import PencilProject
from tests.support.sft_project import SHORT, make_sft_project, write_chat
from tests.support.sources import plan_reading, write_source

PAIRS, LIMIT = 200, 96
SHARDS, SHARES = 60, {"c": 0.4, "d": 0.3, "e": 0.3}


def _write_small_sources(folder: Path) -> None:
    for number in range(PAIRS):
        write_source(folder / f"s{number:03}", [[1 + number // 100, 1 + number % 100, 1, 0]])


def _read_all(folder: Path) -> None:
    """Every source gives its only sample."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    plan = plan_reading(
        {f"s{number:03}": (folder / f"s{number:03}", 1) for number in range(PAIRS)}, global_batch_size=8
    )
    cursor = BlendedCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    rows = {}
    for _ in range(PAIRS // 8):
        for batch in cursor.next_step():
            rows |= dict(zip(batch.sample_ids, batch.tokens.tolist(), strict=True))
    assert rows == {f"s{n:03}:0:0": [1 + n // 100, 1 + n % 100, 1, 0] for n in range(PAIRS)}


def _read_shards(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    views = DocumentsView(read_dataset(folder / "shards"))
    assert [views[number].ids.tolist() for number in range(PAIRS)] == [[number + 1, 0] for number in range(PAIRS)]


def test_more_sources_than_open_files_are_read(tmp_path):
    _write_small_sources(tmp_path)
    assert exit_code_of(_read_all, tmp_path) == 0


def test_the_documents_of_more_shards_than_open_files_are_shown(tmp_path):
    for number in range(PAIRS):
        write_source(tmp_path / f"shards-{number:05}", [[number + 1, 0]])
    assert exit_code_of(_read_shards, tmp_path) == 0


def _fine_tune(folder: Path) -> None:
    """Reads three sources of 60 shards each, then their held-out conversations, of as many, while all stand open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    entries = [f"{{source: {folder}/{name}.yaml, share: {share}, max_epochs: 2}}" for name, share in SHARES.items()]
    budget = (f"budget.examples={3 * SHARDS}", f"training.validation_tokens={4 * SHARDS}")
    plan = PencilProject(folder).plan(f"data.blend=[{', '.join(entries)}]", *budget)
    cursor = ConversationCursor(plan, data_parallel_rank=0, data_parallel_size=1)
    read, held_out = 0, 0
    for _ in range(plan.batch.total_steps):
        read += sum(int((batch.loss_mask > 0).sum()) for batch in cursor.next_step())
    for source in plan.data.sources:
        batches = held_out_conversations(plan, source, data_parallel_rank=0, data_parallel_size=1)
        held_out += sum(int((batch.loss_mask > 0).sum()) for batch in batches)
    assert (read, held_out) == (3 * SHARDS * 2, 3 * SHARDS * 2)


def test_sft_reads_more_shards_than_open_files_and_validates_on_as_many(tmp_path):
    """Of each shard one conversation of 4 tokens, 2 of them trained on."""
    project = make_sft_project(tmp_path)
    (tmp_path / "e.yaml").write_text("source: e\nprefix: e\nvalidation_prefix: e.validation\ndomain: code\n")
    for stem in (f"{name}{part}" for name in SHARES for part in ("", ".validation")):
        for file in (tmp_path / "data").glob(f"{stem}.[bim]*"):
            file.unlink()
        for number in range(SHARDS):
            write_chat(project, f"{stem}-{number:05}", [SHORT])
    assert exit_code_of(_fine_tune, tmp_path) == 0


def _held(folder: Path) -> int:
    return sum(Path(f"/proc/self/fd/{number}").resolve().parent == folder for number in os.listdir("/proc/self/fd"))


def test_so_many_files_are_open_as_were_allowed(tmp_path):
    files = OpenFiles(most=3)
    for number in range(8):
        manifest = write_source(tmp_path / str(number), [[1, 0]])
        Documents(str(tmp_path / str(number)), source="s", data_id=manifest.data_id, files=files)
    assert _held(tmp_path.resolve()) == 3


def test_the_file_longest_unread_is_closed(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    files = OpenFiles(most=2)
    a = files.descriptor(str(tmp_path / "a"))
    files.descriptor(str(tmp_path / "b"))
    assert files.descriptor(str(tmp_path / "a")) == a
    files.descriptor(str(tmp_path / "c"))
    assert os.readlink(f"/proc/self/fd/{a}") == str(tmp_path / "a")


def _closed(folder: Path) -> Documents:
    """Documents whose files were closed, because those of others were opened."""
    files = OpenFiles(most=2)
    documents, _ = (
        Documents(
            str(folder / name), source=name, data_id=write_source(folder / name, [[1, 2, 0]]).data_id, files=files
        )
        for name in "ab"
    )
    return documents


def test_a_file_that_was_replaced_between_two_openings_is_refused(tmp_path):
    """Of the same size: the length of what is read would not tell."""
    documents = _closed(tmp_path)
    write_source(tmp_path / "a", [[7, 8, 0]])
    os.utime(tmp_path / "a.bin", ns=(1, 1))
    with pytest.raises(DataError, match=r"a\.bin: has .* it was replaced while it was read"):
        documents.read([Span(0, 0, 3)], np.empty(3, dtype=np.int64))


def test_a_file_that_was_removed_between_two_openings_is_an_error_with_its_place(tmp_path):
    documents = _closed(tmp_path)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(DataError, match=r"a\.bin: is gone; it was removed while it was read"):
        documents.read([Span(0, 0, 3)], np.empty(3, dtype=np.int64))
