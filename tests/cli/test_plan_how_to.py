"""The numbers of docs/how-to/plan-a-large-run.md are those that its commands print."""

from __future__ import annotations

import json
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
    (command,) = [
        command for command in COMMANDS if words in command and ("--suggest" in words) == ("--suggest" in command)
    ]
    return command


def output_with(words: str) -> list[str]:
    (block,) = [block for block in BLOCKS if words in block and block not in COMMANDS]
    return stripped(block)


def sentence_of(words: str) -> str:
    (line,) = [line for line in PAGE.splitlines() if words in line]
    return line


def test_every_command_of_the_page_does_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        if "=736" in command:
            assert "does not divide global_batch_size 736" in "".join(printed(capsys, command, code=2))
        else:
            assert printed(capsys, command)


@pytest.mark.parametrize(
    ("command", "block"),
    [("--mfu", "FLOPs   "), ("--suggest", "GB a rank"), ("512 --gpu h100", "speed   ")],
)
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
        ("training.backend=local", ["activations 11.7 GB"]),
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


def test_the_numbers_of_the_step_by_hand_are_those_that_are_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    selected = ("parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=1")
    words = [word for key in selected for word in ("--set", key)]
    text = " ".join(printed(capsys, command_with("512 --gpu h100"), *words, "--json"))
    facts = json.loads(text)["prediction"]
    for part, name in {
        "products": "matrix products", "ssd": "SSD", "elementwise": "elementwise", "tensor": "tensor", "data": "data",
        "update": "update",
    }.items():  # fmt: skip
        assert sentence_of(f"| {name} | 0.").split("|")[2].strip() == f"{facts['parts_s'][part]:.3f}"
    assert sentence_of("| step | ").split("|")[2].strip() == f"{facts['step_s']:.3f}"
    own = facts["step_s"] - sum(facts["parts_s"][part] for part in ("tensor", "context", "pipeline", "data"))
    assert f"TP 2 would reach {100 * facts['mfu'] * facts['step_s'] / own:.0f} %" in PAGE
    hours = printed(capsys, command_with("512 --gpu h100"), *words)
    assert any(line.startswith("GPU-hours 35,230 ") and "2.87 days" in line for line in hours)
    assert "it is 35,230 GPU-hours, 2.87 days" in PAGE
