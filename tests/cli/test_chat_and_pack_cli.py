"""The verbs chat and pack, driven as a user does."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.tokenizer import train

TURNS = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "<think>sat</think>the mat"}]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("corpus.jsonl").write_text(json.dumps({"text": "the cat sat on the mat " * 9}) + "\n")
    Path("in.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n" + json.dumps({"messages": TURNS[:1]}) + "\n")
    train(["corpus.jsonl"], "text", 280, "tok")
    capsys.readouterr()
    return tmp_path


def test_conversations_become_ids_then_packs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = "chat --input in.jsonl --tokenizer tok --output out/c --on-error skip"
    assert main(shlex.split(chat)) == 0
    captured = capsys.readouterr()
    assert captured.err == "WARNING: 1 lines were rejected; they are listed in out/c.rejects.jsonl\n"
    assert "bad conversation 1" in captured.out
    assert "1 documents compared with tokenizers" in captured.out
    assert main(shlex.split(chat)) == 0
    assert "out/c: already done" in capsys.readouterr().out
    pack = "pack out/c --length 100 --output out/p"
    assert main(shlex.split(pack)) == 0
    assert "1 of 100 tokens, bfd" in capsys.readouterr().out
    assert main(shlex.split(pack)) == 0
    assert "out/p: already done" in capsys.readouterr().out
    assert main(shlex.split(pack + " --algo concat")) == 3
    assert "algorithm: it has bfd, asked for concat" in capsys.readouterr().err


def test_answers_that_were_cut_off_are_warned_of(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(shlex.split("chat --input in.jsonl --tokenizer tok --output c --on-error skip"))
    capsys.readouterr()
    assert main(shlex.split("pack c --length 4 --overlong truncate --output p")) == 0
    assert capsys.readouterr().err == "WARNING: 1 pieces hold no trained token: a row ends before their answers begin\n"


def test_shards_of_conversations_are_packed_as_one_pair(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(shlex.split("chat --input in.jsonl --tokenizer tok --output shards --on-error skip --shard-bytes 100"))
    capsys.readouterr()
    assert main(shlex.split("pack shards --length 100 --output p")) == 3
    error = capsys.readouterr().err
    assert "shards: is a folder of shards, and one pair is wanted; write it as one with: " in error
    assert main(shlex.split(error.rpartition("python -m data_tools ")[2])) == 0
    assert main(shlex.split("pack shards-whole --length 100 --output p")) == 0
    assert "1 of 100 tokens, bfd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("chat --input in.jsonl --tokenizer tok --output c", 3, "error: in.jsonl:2: bad conversation"),
        ("chat --input in.jsonl --tokenizer tok --output c --train-on tools", 2, "error: --train-on: tools: assistant"),
        ("chat --input no.jsonl --tokenizer tok --output c", 3, "error: no.jsonl: cannot be read"),
        ("pack c --length many --output p", 2, "error: --length: "),
        ("pack c --length 10 --output p", 3, "error: c.manifest.json: no such file"),
    ],
)
def test_what_a_user_can_mend_is_said(
    data: Path, capsys: pytest.CaptureFixture[str], command: str, code: int, said: str
) -> None:
    assert main(shlex.split(command)) == code
    assert said in capsys.readouterr().err
