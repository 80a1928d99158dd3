"""The verb `inspect` as a user drives it: in a pipe, on a terminal, and for machines."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.tokenizer import train

REPOSITORY = Path(__file__).parents[2]
TALK = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "the mat"}]
SHOWN = "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n⟦the mat<|im_end|>⟧\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A working directory with a text dataset, a conversation dataset and its packs."""
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text('{"text": "the cat sat on the mat", "id": "a"}\n{"text": "a cat", "id": "b"}\n')
    Path("chat.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    train(["text.jsonl"], "text", 280, "tok")
    for command in (
        "tokenize --input text.jsonl --tokenizer tok --output text --append-eod",
        "chat --input chat.jsonl --tokenizer tok --output chat",
        "pack chat --length 64 --output packs",
    ):
        assert main(shlex.split(command)) == 0
    capsys.readouterr()
    return tmp_path


def shown(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(shlex.split(f"inspect {command}")) == 0
    return capsys.readouterr().out


def refused(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(shlex.split(f"inspect {command}")) == 2
    return capsys.readouterr().err


def cells(text: str) -> dict[str, str]:
    """The rows of the table that a text ends with."""
    rows = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    return {name.strip(): value.strip() for name, value in rows}


def test_a_dataset_shows_its_lengths_and_a_summary(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown("text", capsys)
    assert text.splitlines()[0] == "tokens  documents  of all tokens"
    assert cells(text)["documents"] == "2"
    assert cells(text)["tokens per document"].startswith("median ")


def test_conversations_show_what_is_trained_on_beside_all_tokens(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown("chat", capsys)
    assert [line.split("  ")[0].strip() for line in text.splitlines() if "of all tokens" in line] == [
        "tokens",
        "trained tokens",
    ]
    assert "trained tokens per document" in cells(text)


def test_a_document_in_a_pipe_has_brackets_around_what_is_trained_on(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown("chat --document 0 --tokenizer tok", capsys)
    assert text.startswith(SHOWN)
    assert "\x1b" not in text
    trained, of_all = (int(cells(text)[name].split()[0]) for name in ("trained tokens", "tokens"))
    assert 0 < trained < of_all


def test_a_text_has_no_brackets_and_says_where_it_came_from(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown("text --document 1 --tokenizer tok", capsys)
    assert text.startswith("a cat<|endoftext|>\ntext: document 1 of 2\n")
    found = cells(text)
    assert (found["source"], found["row"], found["domain"], found["split"]) == ("text.jsonl", "2", "general", "train")
    assert found["trained tokens"] == "all: it is text"
    assert found["hash of its id"] == "3e23e8160039594a"  # printf b | sha256sum | head -c 16
    assert found["answer"] == "not marked"


def test_a_row_shows_each_piece_and_its_padding(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown("packs --row 0 --tokenizer tok", capsys)
    assert text.startswith("-- piece 0 of 1: document 0, its tokens 0 to ")
    assert SHOWN in text
    found = cells(text)
    tokens, of_row = found["tokens"].split(" of ")
    assert (of_row, int(found["padding"])) == ("64", 64 - int(tokens))


def test_packs_show_their_rows_and_pieces(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown("packs", capsys)
    assert "tokens     pieces  of all tokens" in text
    assert cells(text)["rows"] == "1 of 64 tokens, bfd"


def test_json_holds_all_that_is_shown(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown("chat --document 0 --tokenizer tok --json", capsys))
    document = found["document"]
    assert [run["text"] for run in document["runs"] if run["trained"]] == ["the mat<|im_end|>"]
    assert len(document["ids"]) == len(document["mask"]) == found["lengths"]["tokens"]["longest"]
    assert sum(document["mask"]) == found["lengths"]["trained tokens"]["longest"]
    assert found["manifests"][0]["documents"] == 1
    (piece,) = json.loads(shown("packs --row 0 --json", capsys))["row"]
    assert (piece["document"], piece["ranges"]) == (0, [[0, len(document["ids"])]])
    assert piece["ids"] == document["ids"]
    assert json.loads(shown("text --document 0 --json", capsys))["document"]["origin"]["file"] == "text.jsonl"


def test_a_picture_is_written_beside_the_summary(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("chat --png lengths.png", capsys).startswith("wrote lengths.png\n")
    assert Path("lengths.png").read_bytes().startswith(b"\x89PNG")


def test_what_contradicts_itself_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("text --document 2", capsys) == "error: --document: 2 is not in 0..1 of text\n"
    assert refused("packs --row 1", capsys) == "error: --row: 1 is not in 0..0 of packs\n"
    assert "--row: text.packs.json: no such file" in refused("text --row 0", capsys)
    assert "--document: packs holds packs; give --row N" in refused("packs --document 0", capsys)
    assert "--tokenizer: shows a document or a row as text" in refused("text --tokenizer tok", capsys)


def on_a_terminal(command: str, **environment: str) -> str:
    """What a terminal receives."""
    leader, follower = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    subprocess.run(
        [sys.executable, "-m", "data_tools", *shlex.split(command)],
        env={**kept, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", **environment},
        stdout=follower,
        check=True,
    )
    os.close(follower)
    received = b""
    try:
        while piece := os.read(leader, 1 << 16):
            received += piece
    except OSError:  # Linux ends a terminal that nobody writes to so
        pass
    os.close(leader)
    return received.decode().replace("\r\n", "\n")


def test_a_terminal_has_colours_and_no_brackets(data: Path) -> None:
    text = on_a_terminal("inspect chat --document 0 --tokenizer tok")
    assert "\x1b[1;32mthe mat<|im_end|>\x1b[0m" in text
    assert "⟦" not in text


def test_no_color_gives_brackets_on_a_terminal_too(data: Path) -> None:
    text = on_a_terminal("inspect chat --document 0 --tokenizer tok", NO_COLOR="1")
    assert text.startswith(SHOWN)
    assert "\x1b[1;32m" not in text
