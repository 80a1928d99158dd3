"""Lengths in numbers, in a chart of text and in a picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import SetupError, UsageError
from data_tools.length_chart import Bin, LengthFacts, doublings, text_chart, write_png

LENGTHS = np.array([1, 5, 6, 7, 9])


def test_facts_are_those_of_a_pencil() -> None:
    assert LengthFacts.of(LENGTHS) == LengthFacts(shortest=1, median=6.0, mean=5.6, longest=9)
    assert LengthFacts.of(np.zeros(0, np.int64)) == LengthFacts(0, 0.0, 0.0, 0)


def test_a_doubling_holds_its_powers_of_two_at_the_lower_end() -> None:
    assert doublings(np.array([1, 2, 3, 4, 7, 8])) == [
        Bin(1, 1, documents=1, tokens=1),
        Bin(2, 3, documents=2, tokens=5),
        Bin(4, 7, documents=2, tokens=11),
        Bin(8, 15, documents=1, tokens=8),
    ]


def test_documents_without_a_token_have_a_line_of_their_own() -> None:
    assert doublings(np.array([0, 0, 1])) == [Bin(0, 0, documents=2, tokens=0), Bin(1, 1, documents=1, tokens=1)]


def test_the_text_chart_names_what_is_counted_and_of_what() -> None:
    lines = text_chart(np.array([2, 2, 3, 300]), "trained tokens", of="pieces")
    assert lines == [
        "trained tokens     pieces  of all tokens",
        "         2 - 3          3          2.3 %  ########################################",
        "     256 - 511          1         97.7 %  #############",
    ]


def test_a_chart_of_nothing_has_a_header_alone() -> None:
    assert text_chart(np.zeros(0, np.int64), "tokens") == ["tokens  documents  of all tokens"]


@pytest.mark.parametrize("lengths", [LENGTHS, np.array([7]), np.array([100, 101, 130]), np.array([0, 1, 40_000])])
def test_a_picture_is_drawn_of_any_lengths(lengths: np.ndarray, tmp_path: Path) -> None:
    trained = np.maximum(lengths // 2, 1)
    write_png(tmp_path / "new/a.png", {"tokens": lengths, "trained tokens": trained}, title="a")
    picture = (tmp_path / "new/a.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")
    assert (width, height) == (1080, 780)


def test_only_a_png_is_written_and_only_of_something(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--png: .*a\.bin does not end in \.png"):
        write_png(tmp_path / "a.bin", {"tokens": LENGTHS}, title="a")
    with pytest.raises(UsageError, match="--png: there is no document with a token to draw"):
        write_png(tmp_path / "a.png", {"tokens": np.zeros(2, np.int64)}, title="a")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SetupError, match=r"--png draws with it: pip install 'megatron-ext\[plots\]'"):
        write_png(tmp_path / "a.png", {"tokens": LENGTHS}, title="a")
