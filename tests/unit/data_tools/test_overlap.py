"""Shared documents and n-grams are found whatever their case and punctuation, and nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_tools.ngrams
from data_tools.adapters import adapter_named
from data_tools.errors import DataError
from data_tools.ngrams import hash_documents
from data_tools.overlap import Corpus, Overlap, find_overlap, write_report

WORDS = [f"w{number}" for number in range(40)]
LINE = " ".join(WORDS)


def corpus(name: str, *texts: str) -> Corpus:
    Path(f"{name}.jsonl").write_text(
        "".join(json.dumps({"id": f"{name}{i}", "text": t}) + "\n" for i, t in enumerate(texts))
    )
    return Corpus(name, (([f"{name}.jsonl"], adapter_named("text")),))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def hits(overlap: Overlap) -> tuple[list[int], list[int]]:
    return overlap.sides[0].hits.tolist(), overlap.sides[1].hits.tolist()


def test_a_shared_passage_counts_its_ngrams_in_both_documents() -> None:
    passage = " ".join(WORDS[:15])  # three 13-grams
    found = find_overlap(corpus("a", f"one two {passage} three", "nothing here"), corpus("b", f"{passage} x y z"))
    assert hits(found) == ([3, 0], [3])
    assert [side.ngrams.tolist() for side in found.sides] == [[6, 0], [6]]
    assert not found.sides[0].duplicates.any()


def test_twelve_shared_words_are_no_hit() -> None:
    passage = " ".join(WORDS[:12])
    found = find_overlap(corpus("a", f"a {passage} b"), corpus("b", f"c {passage} d"))
    assert hits(found) == ([0], [0])


def test_an_ngram_does_not_reach_into_the_next_document() -> None:
    found = find_overlap(corpus("a", " ".join(WORDS[:7]), " ".join(WORDS[7:14])), corpus("b", " ".join(WORDS[:14])))
    assert hits(found) == ([0, 0], [0])


def test_case_punctuation_and_layout_make_no_difference() -> None:
    other = LINE.upper().replace(" ", " —\n\t“")
    found = find_overlap(corpus("a", LINE), corpus("b", f"«{other}»!"))
    assert found.sides[0].duplicates.tolist() == [True]
    assert hits(found) == ([28], [28])


def test_a_letter_beyond_ascii_is_part_of_its_word() -> None:
    found = find_overlap(corpus("a", "Straße ÜBER Wörter"), corpus("b", "strasse über wörter", "straße über wörter"))
    assert found.sides[1].duplicates.tolist() == [False, True]


def test_a_short_document_is_found_as_a_whole_within_another() -> None:
    short = corpus("a", "What is 2 + 2?", "what is 2 + 3", "w0", "!!!", " ".join(WORDS[:13]))  # of 4, 4, 1, 0, 13
    found = find_overlap(short, corpus("b", f"what is 2 + 2 {LINE}", "what is two + 3"))
    assert found.sides[0].within.tolist() == [True, False, True, False, False]
    assert not found.sides[0].duplicates.any()
    assert found.sides[1].within.tolist() == [False, False]


@pytest.mark.parametrize("others", [1, 99], ids=["of-the-larger", "of-the-smaller"])
def test_short_documents_of_both_sides_are_found(others: int) -> None:
    found = find_overlap(corpus("a", "w3 w4", "w4 w3"), corpus("b", *[LINE] * others, "w39"), n=3)
    assert [side.within.tolist() for side in found.sides] == [[True, False], [*[False] * others, False]]
    found = find_overlap(corpus("a", LINE), corpus("b", *["w3 w4", "w4 w3"] * others), n=3)
    assert [side.within.tolist() for side in found.sides] == [[False], [True, False] * others]


def test_a_short_document_does_not_stand_across_two_others() -> None:
    found = find_overlap(corpus("a", "w1 w2"), corpus("b", "w0 w1", "w2 w3"))
    assert found.sides[0].within.tolist() == [False]
    assert not found.sides[0].touched.any()


def test_what_is_found_of_short_documents_does_not_depend_on_how_much_is_held_at_once() -> None:
    chance = random.Random(2)
    texts = [" ".join(chance.choices("abcdef", k=chance.randrange(1, 30))) for _ in range(200)]
    one, other = corpus("a", *texts[:100]), corpus("b", *texts[100:])
    whole, pieces = (find_overlap(one, other, n=8, max_hashes=most) for most in (10**6, 200))
    assert pieces.passes > 3
    for side, cut, others in zip(whole.sides, pieces.sides, (texts[100:], texts[:100]), strict=True):
        texts_of = texts[:100] if side is whole.sides[0] else texts[100:]
        expected = [len(text.split()) < 8 and any(f" {text} " in f" {one} " for one in others) for text in texts_of]
        assert side.within.tolist() == cut.within.tolist() == expected


def test_order_of_words_matters() -> None:
    found = find_overlap(corpus("a", LINE), corpus("b", " ".join(reversed(WORDS))))
    assert hits(found) == ([0], [0])
    assert not found.sides[0].duplicates.any()


def test_documents_without_words_are_no_duplicates_of_each_other() -> None:
    found = find_overlap(corpus("a", "!!!"), corpus("b", "..."))
    assert not found.sides[0].duplicates.any()


def test_the_result_does_not_depend_on_how_much_is_held_at_once() -> None:
    chance = random.Random(0)
    texts = [" ".join(chance.choices("abcdef", k=chance.randrange(5, 60))) for _ in range(200)]
    one, other = corpus("a", *texts[:120]), corpus("b", *texts[80:])
    whole = find_overlap(one, other, n=5)
    pieces = find_overlap(one, other, n=5, max_hashes=300)
    assert whole.passes == 1
    assert pieces.passes > 3
    assert hits(pieces) == hits(whole)
    assert sum(side.hits.sum() for side in whole.sides) > 0


def test_the_count_is_that_of_plain_python_sets() -> None:
    chance = random.Random(1)
    texts = [" ".join(chance.choices("abcd", k=chance.randrange(1, 40))) for _ in range(100)]

    def grams(text: str) -> list[tuple[str, ...]]:
        words = text.split()
        return [tuple(words[at : at + 6]) for at in range(len(words) - 5)]

    known = {gram for text in texts[:50] for gram in grams(text)}
    expected = [sum(gram in known for gram in grams(text)) for text in texts[50:]]
    found = find_overlap(corpus("a", *texts[:50]), corpus("b", *texts[50:]), n=6)
    assert found.sides[1].hits.tolist() == expected


@given(
    st.lists(st.text(alphabet="aB1 é—\n", max_size=60), min_size=1, max_size=6), st.integers(min_value=1, max_value=14)
)
def test_a_document_hashes_alike_alone_and_among_others(texts: list[str], n: int) -> None:
    together = hash_documents(texts, n)
    alone = [hash_documents([text], n) for text in texts]
    assert together.documents.tolist() == [one.documents[0] for one in alone]
    assert together.hashes.tolist() == [value for one in alone for value in one.hashes.tolist()]
    assert together.ngrams.tolist() == [len(one.hashes) for one in alone]


def test_words_longer_than_a_chunk_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(["x" * 50, *WORDS, "y" * 50])
    whole = hash_documents([text], 3).hashes
    monkeypatch.setattr(data_tools.ngrams, "CHUNK_BYTES", 16)
    assert np.array_equal(hash_documents([text], 3).hashes, whole)


def test_the_report_names_file_row_and_id() -> None:
    found = find_overlap(corpus("a", "none", LINE), corpus("b", LINE))
    lines: list[bytes] = []
    assert write_report(found, lines.append) == 2
    first, second = [json.loads(line) for line in lines]
    assert first == {
        "side": "a",
        "against": "b",
        "file": "a.jsonl",
        "row": 2,
        "id": "a1",
        "ngrams": 28,
        "hits": 28,
        "share": 1.0,
        "duplicate": True,
        "within": False,
    }
    assert (second["side"], second["row"]) == ("b", 1)


def test_a_bad_line_stops_the_comparison_with_its_place() -> None:
    bad = corpus("a", LINE)
    with Path("a.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError, match="a.jsonl:2: malformed"):
        find_overlap(bad, corpus("b", LINE))


def test_the_chance_of_a_false_hit_is_pairs_over_the_number_of_hashes() -> None:
    found = find_overlap(corpus("a", LINE), corpus("b", LINE))
    assert found.false_hits == 28 * 28 / 2**64
