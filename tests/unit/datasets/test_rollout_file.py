"""Completions that were kept are read again, chosen, and shown."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import DataError, UsageError
from megatron_ext.__main__ import main
from megatron_ext.datasets.rollout_file import read_rollouts, rollout_file, write_rollouts
from megatron_ext.datasets.rollout_view import print_rollouts


def record(place: int, sample: int, reward: float, domain: str = "math") -> dict[str, Any]:
    return {
        "step": 3,
        "place": place,
        "prompt_id": f"{place:032x}",
        "name": f"sum-{place}",
        "source": "sums",
        "domain": domain,
        "family": "",
        "prompt": [{"role": "user", "content": "1 + 1?"}],
        "truth": "2",
        "sample": sample,
        "text": f"answer {place}/{sample}",
        "tokens": 7,
        "finish": "stop",
        "reward": reward,
        "parts": {"accuracy": reward},
        "outcome": "scored",
        "advantage": reward - 0.5,
        "log_prob": -0.25,
        "is_trained": True,
    }


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    records = [record(0, 0, 1.0), record(0, 1, 0.0), record(1, 0, 0.5, "code"), record(1, 1, 0.5, "code")]
    write_rollouts(tmp_path, 2, records[:1])
    write_rollouts(tmp_path, 3, records)
    return tmp_path


def test_what_was_written_is_read_and_the_newest_step_is_taken(stage: Path) -> None:
    step, records = read_rollouts(stage, None)
    assert (step, len(records), records[2]["domain"]) == (3, 4, "code")
    assert len(read_rollouts(stage, 2)[1]) == 1


def test_a_step_that_is_not_there_names_those_that_are(stage: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"step_9.jsonl.zst: no such file; there are steps 2 to 3"):
        read_rollouts(stage, 9)
    with pytest.raises(DataError, match="no rollouts; name the folder of an rl stage"):
        read_rollouts(tmp_path / "other", None)


def test_a_damaged_file_is_said(stage: Path) -> None:
    rollout_file(stage, 3).write_bytes(b"no zstd")
    with pytest.raises(DataError, match="step_3.jsonl.zst: damaged"):
        read_rollouts(stage, 3)


def test_a_file_that_ends_too_early_is_damaged(stage: Path) -> None:
    whole = rollout_file(stage, 3).read_bytes()
    rollout_file(stage, 3).write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"step_3.jsonl.zst: damaged \(it ends too early\)"):
        read_rollouts(stage, 3)


def test_what_a_policy_samples_cannot_write_to_the_terminal_and_names_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {"text": "\x1b[2J\x1b]0;title\x07 done", "name": "[/x] [red]weird", "truth": "\x9b31m"}
    write_rollouts(tmp_path, 1, [record(0, 0, 1.0) | wild])
    print_rollouts(tmp_path)
    text = capsys.readouterr().out
    assert "\\x1b[2J\\x1b]0;title\\x07 done" in text
    assert "[/x] [red]weird" in text
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


@pytest.mark.parametrize("columns", [80, 45])
def test_a_narrow_terminal_shows_every_domain_and_whole_numbers(stage: Path, columns: int) -> None:
    shown = in_terminal(columns, "rollouts", str(stage), "--best", "1")
    summary = shown[: shown.index("╭")]
    assert "…" not in summary
    for name in ("code", "math", "all"):
        assert any(line.startswith(name) for line in summary.splitlines()), summary
    assert "0.500" in summary


def in_terminal(columns: int, *words: str) -> str:
    """What a command writes to a terminal of so many columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "megatron_ext", *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, env=environment | {"TERM": "xterm"}) as process:
        os.close(theirs)
        chunks = []
        with contextlib.suppress(OSError):  # of a terminal whose other end is closed
            while chunk := os.read(ours, 1 << 16):
                chunks.append(chunk)
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[\d;]*m", "", b"".join(chunks).decode().replace("\r\n", "\n"))


def test_the_best_and_the_worst_are_chosen_by_reward(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_rollouts(stage, best=1, worst=1, as_json=True)
    shown = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["answer 0/0", "answer 0/1"]


def test_a_domain_alone_is_shown_with_its_numbers(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_rollouts(stage, domain="code", best=1)
    text = capsys.readouterr().out
    assert "answer 1/0" in text
    assert "answer 0/0" not in text
    assert "right answer  2" in text
    (line,) = [line for line in text.splitlines() if line.startswith("code")]
    assert line.split() == ["code", "1", "2", "0.500", "50.0", "%", "7.0", "0.0", "%", "1"]


def test_a_domain_that_nothing_has_is_refused(stage: Path) -> None:
    with pytest.raises(UsageError, match="no completion of step 3 is left; it has 4, of domains code, math"):
        print_rollouts(stage, domain="science")


def test_the_stages_of_a_glob_are_shown_one_after_the_other(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = stage / "other"
    write_rollouts(other, 7, [record(0, 0, 1.0)])
    assert main(["rollouts", str(stage), str(other), "--best", "1"]) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert headings == [f"step 3  {stage}", f"step 7  {other}"]


def test_a_penalty_of_length_is_shown_beside_the_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rollouts(tmp_path, 1, [record(0, 0, 1.0) | {"penalty": -0.5}, record(1, 0, 1.0) | {"penalty": 0.0}])
    print_rollouts(tmp_path)
    shown = [line for line in capsys.readouterr().out.splitlines() if "reward 1 " in line]
    assert ["penalty -0.5" in line for line in shown] == [True, False]
