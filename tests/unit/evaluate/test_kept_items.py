"""Lines of an evaluation: whole or not there, each once, whatever was killed."""

import json
from pathlib import Path

from megatron_ext.evaluate.kept_items import (
    REQUESTS,
    KeptItems,
    finish_items,
    lines_on_disk,
    read_items,
    remove_parts,
    runs_of_missing,
)


def test_lines_of_all_ranks_are_found_again_by_task(tmp_path: Path) -> None:
    for rank, item in enumerate(["a", "b"]):
        kept = KeptItems(tmp_path, rank=rank, lines=())
        kept.add("sums", item, score=rank)
        kept.close()
    lines, cut = lines_on_disk(tmp_path)
    again = KeptItems(tmp_path, rank=0, lines=lines)
    assert cut == 0
    assert [(line["item"], line["sample"], line["score"]) for line in again.of("sums")] == [("a", 0, 0), ("b", 0, 1)]
    assert again.of("words") == []


def test_a_line_that_a_kill_has_cut_is_dropped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "samples.rank_0.jsonl"
    whole = json.dumps({"task": "t", "item": "a", "sample": 0})
    file.write_text(whole + '\n{"task": "t", "it')
    lines, cut = lines_on_disk(tmp_path)
    assert ([line["item"] for line in lines], cut) == (["a"], 1)
    assert file.read_text() == whole + "\n"  # what is appended now begins on a line of its own


def test_the_finished_file_is_sorted_and_holds_each_answer_once(tmp_path: Path) -> None:
    for rank in (0, 1):
        kept = KeptItems(tmp_path, rank=rank, lines=())
        kept.add("t", "b", sample=1)
        kept.add("t", "a", sample=rank)
        kept.close()
    finish_items(tmp_path)
    remove_parts(tmp_path)
    assert [(line["item"], line["sample"]) for line in read_items(tmp_path)] == [("a", 0), ("a", 1), ("b", 1)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["samples.jsonl.zst"]


def test_requests_are_kept_apart_and_gone_at_the_end(tmp_path: Path) -> None:
    kept = KeptItems(tmp_path, rank=0, lines=(), kept_as=REQUESTS)
    kept.add("t", "a", log_prob=-1.5)
    kept.close()
    assert lines_on_disk(tmp_path) == ([], 0)
    assert lines_on_disk(tmp_path, REQUESTS) == ([{"task": "t", "item": "a", "sample": 0, "log_prob": -1.5}], 0)
    finish_items(tmp_path)
    remove_parts(tmp_path)
    assert list(read_items(tmp_path)) == []
    assert [file.name for file in tmp_path.iterdir()] == ["samples.jsonl.zst"]


def test_a_rank_that_does_not_write_gives_the_same_line(tmp_path: Path) -> None:
    kept = KeptItems(tmp_path, rank=1, lines=(), writes=False)
    assert kept.add("t", "a", score=1) == {"task": "t", "item": "a", "sample": 0, "score": 1}
    assert list(tmp_path.iterdir()) == []


def test_only_samples_that_are_missing_are_asked_for_again() -> None:
    there = {("a", 0), ("a", 2), ("b", 1)}
    assert runs_of_missing("a", there, 5) == [(1, 1), (3, 2)]
    assert runs_of_missing("c", there, 2) == [(0, 2)]
    assert runs_of_missing("a", {("a", sample) for sample in range(5)}, 5) == []
