"""Lines of an evaluation: whole or not there, each once, whatever was killed."""

import json
from pathlib import Path

from megatron_ext.evaluate.kept_items import KeptItems, finish_items, lines_on_disk, read_items, remove_parts


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
