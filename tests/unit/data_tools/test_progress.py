"""How far long work is: a bar on a terminal, lines in a log, in bytes or in what else is counted."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest

from data_tools import progress
from data_tools.drawing import Drawn
from data_tools.pack_rows import BatchUnit, Conversations, RowOptions, make_rows


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error; no fixture, because pytest puts its own there before the test begins."""
    for name in ("RANK", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_a_bar_counts_in_the_unit_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with progress.shown("packing", 4, unit="conversations") as told:
        told.advance(3)
    assert "packing" in terminal.getvalue()
    assert re.search(r"\b3/4\b.* conversations/s", re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()))


def test_a_log_gets_lines_in_that_unit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.shown("packing", 4, unit="conversations") as told:
        told.advance(1)
    assert re.fullmatch(r"packing: 25 %, [\d,]+ conversations/s, \d+ s left\n", capsys.readouterr().err)


def test_of_the_ranks_of_a_job_the_first_alone_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    with progress.shown("packing", 4) as told:
        told.advance(4)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("unit", ["rows", "conversations"])
def test_packing_tells_of_every_conversation_when_it_is_cut_and_when_it_is_packed(unit: BatchUnit) -> None:
    told: list[int] = []

    class Told:
        def advance(self, size: int) -> None:
            told.append(size)

    source = Conversations(np.array([4, 4, 4, 12]), None)  # the last is split in two
    rounds = [Drawn(np.zeros(4, np.int64), np.arange(4)), Drawn(np.zeros(1, np.int64), np.array([3]))]
    make_rows([source], rounds, RowOptions(length=8, step=2, unit=unit, overlong="split"), Told())
    assert told == {"rows": [4, 1, 4, 1], "conversations": [4, 1, 2, 2, 1]}[unit]
