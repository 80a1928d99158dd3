"""The numbers of docs/how-to/plan-a-large-run.md are those that its commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from megatron_ext.__main__ import main

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/how-to/plan-a-large-run.md").read_text()
BLOCKS = [
    " ".join(block.split("\\")) for block in re.findall(r"^ *```\w*\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)
]
COMMANDS = [block for block in BLOCKS if block.lstrip().startswith("python -m megatron_ext ")]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def printed(capsys: pytest.CaptureFixture[str], command: str, *more: str, code: int = 0) -> list[str]:
    """Lines of a command's output, each without its outer and doubled blanks."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "megatron_ext"]
    assert main([*words[3:], *more]) == code
    out, err = capsys.readouterr()
    return stripped(err if code else out)


def stripped(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def command_with(words: str) -> str:
    (command,) = [command for command in COMMANDS if words in command]
    return command


def output_with(words: str) -> list[str]:
    (block,) = [block for block in BLOCKS if words in block and block not in COMMANDS]
    return stripped(block)


def sentence_of(words: str) -> str:
    (line,) = [line for line in PAGE.splitlines() if words in line]
    return line


def test_every_command_of_the_page_does_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        if "=736" in command:
            assert "does not divide global_batch_size 736" in "".join(printed(capsys, command, code=2))
        else:
            assert printed(capsys, command)


@pytest.mark.parametrize(("command", "block"), [("--mfu", "FLOPs   "), ("--suggest", "GB a rank")])
def test_the_printed_blocks_are_the_output(command: str, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, command_with(command))
    shown = output_with(block)
    assert [line for line in lines if line in shown] == shown


def test_the_numbers_beside_the_first_plan_are_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(printed(capsys, COMMANDS[0]))
    for row, printed_there in {
        "| `model` |": "8,100,852,736 parameters",
        "| `layout` |": "tensor 4 x pipeline 2 x data 64",
        "| `tokens`, `steps` |": "158,946",
        "| `microbatches` |": "12 a step on each rank",
        "| the table of sources |": "6,200,000,000,000 declared",
    }.items():
        assert printed_there in sentence_of(row)
        assert printed_there in text


@pytest.mark.parametrize(
    ("option", "there"),
    [
        ("training.backend=local", ["activations 20.3 GB"]),
        ("training.recompute=full", ["7.81 GB", "31 % more"]),
        ("checkpoint.optimizer_format=dp_reshardable", ["2.22 GB"]),
    ],
)
def test_the_numbers_beside_an_option_are_its_own(
    option: str, there: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(printed(capsys, command_with("--mfu"), "--set", option))
    sentence = sentence_of(f"--set {option}`")
    for number in there:
        assert number.removeprefix("activations ") in sentence
        assert number in text
