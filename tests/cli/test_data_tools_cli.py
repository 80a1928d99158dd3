"""The commands of data_tools as people type them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.manifest import read_manifest

SHQ_LINE = {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "<think>\n</think>\n2"}]}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a corpus of three documents and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    lines = [{"text": "the cat sat on the mat"}, {"text": "the end"}, SHQ_LINE]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(shlex.split("train-tokenizer --input in.jsonl --vocab-size 280 --out tok")) == 0
    return tmp_path


def test_the_program_help_starts_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("Example:\n  python -m data_tools sample --out data/demo/raw\n")


def test_tokenize_ends_with_a_summary_and_says_when_it_was_done(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = shlex.split("tokenize --input in.jsonl --tokenizer tok --output out --append-eod")
    capsys.readouterr()
    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.startswith("out: done")
    assert re.search(r"documents\s+│ 3 ", first)
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("out: already done")
    assert read_manifest("out").command == f"data-tools {shlex.join(command)}"


HEAVY = ("numpy", "pydantic", "orjson", "jinja2", "rich", "tokenizers", "gigatoken", "decimal", "data_tools.encode")


@pytest.mark.parametrize(
    "written",
    [
        "tokenize --input in.jsonl --tokenizer tok --output out --append-eod",
        "tokenize --input in.jsonl --tokenizer tok --output out --hold-out 50% --on-error skip --max-bad 1",
        "chat --input chats.jsonl --tokenizer tok --output out",
    ],
)
def test_a_finished_job_loads_nothing_that_encodes_draws_or_takes_long(data: Path, written: str) -> None:
    Path("chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}\n'
    )
    command = shlex.split(written)
    assert main(command) == 0
    program = (
        "import sys; from data_tools.__main__ import main; main(sys.argv[1:]); "
        f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "out: already done"
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_bad_line_exits_3_with_file_and_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.jsonl").write_text('{"text": "a"}\n{"id": 1}\n')
    capsys.readouterr()
    assert main(shlex.split("tokenize --input bad.jsonl --tokenizer tok --output out")) == 3
    assert capsys.readouterr().err == (
        'error: bad.jsonl:2: missing key: no key "text"; keys: id; '
        "mend the line, or give --on-error skip to leave out such lines and list them\n"
    )
    assert not list(data.glob("out*"))


def test_skipped_lines_are_warned_of_with_their_number(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.jsonl").write_text('{"text": "a"}\n{"id": 1}\n')
    assert main(shlex.split("tokenize --input bad.jsonl --tokenizer tok --output out --on-error skip")) == 0
    captured = capsys.readouterr()
    assert captured.err == "WARNING: 1 lines were rejected; they are listed in out.rejects.jsonl\n"
    assert "1 (missing key 1)" in captured.out


@pytest.mark.parametrize("shards", ["", " --shard-bytes 1M"])
def test_the_slow_library_is_said(shards: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("tok/tokenizer.json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"normalizer": {"type": "Lowercase"}}))
    assert main(shlex.split("tokenize --input in.jsonl --tokenizer tok --output out" + shards)) == 0
    assert "WARNING: encoded by tokenizers, the slow library: gigatoken does not take it: " in capsys.readouterr().err


def test_other_settings_at_a_finished_prefix_exit_3(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split("tokenize --input in.jsonl --tokenizer tok --output out")) == 0
    capsys.readouterr()
    assert main(shlex.split("tokenize --input in.jsonl --tokenizer tok --output out --append-eod")) == 3
    assert capsys.readouterr().err == (
        "error: out: holds another dataset; give --overwrite, or another --output\n"
        "  --append-eod: it has False, asked for True\n"
    )
    assert main(shlex.split("tokenize --input in.jsonl --tokenizer tok --output out --append-eod --overwrite")) == 0


def test_inspect_refuses_another_tokenizer_and_a_document_that_is_not_there(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(shlex.split("tokenize --input in.jsonl --tokenizer tok --output out"))
    main(shlex.split("train-tokenizer --input in.jsonl --vocab-size 273 --out other"))
    capsys.readouterr()
    assert main(shlex.split("inspect out --document 0 --tokenizer other")) == 3
    assert 'that of "tok", which made out; give that folder' in capsys.readouterr().err
    assert main(shlex.split("inspect out --document 3")) == 2
    assert capsys.readouterr().err == "error: --document: 3 is not in 0..2 of out\n"
    assert main(shlex.split("inspect out --tokenizer tok")) == 2
    assert main(shlex.split("inspect nothing")) == 3
    assert (
        "nothing.manifest.json: no such file; finished datasets there: out; make it with: python -m data_tools"
        in capsys.readouterr().err
    )


def test_a_vocabulary_that_the_text_cannot_fill_is_warned_of(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(shlex.split("train-tokenizer --input in.jsonl --vocab-size 1K --out big")) == 0
    assert re.fullmatch(
        r"WARNING: --vocab-size: asked for 1,000 ids, the text has merges for 2\d\d\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("size", ["many", "10", "1.5"])
def test_a_wrong_vocabulary_size_exits_2(data: Path, capsys: pytest.CaptureFixture[str], size: str) -> None:
    capsys.readouterr()
    assert main(shlex.split(f"train-tokenizer --input in.jsonl --vocab-size {size} --out t2")) == 2
    assert capsys.readouterr().err.startswith("error: --vocab-size: ")


def test_a_different_tokenizer_in_the_folder_exits_3(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split("train-tokenizer --input in.jsonl --vocab-size 280 --out tok")) == 0
    assert "tokenizer was there already: tok" in capsys.readouterr().out
    assert main(shlex.split("train-tokenizer --input in.jsonl --vocab-size 281 --out tok")) == 3
    assert "tok: holds a different tokenizer: vocab_size: it has 280, asked for 281" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_exits_4(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(shlex.split("tokenize --input in.jsonl --tokenizer tok --output in.jsonl/out")) == 4
    assert capsys.readouterr().err == "error: in.jsonl: File exists\n"


def test_a_sample_too_small_to_hold_out_rows_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--out", str(tmp_path), "--only", "shq", "--scale", "0.001"]) == 0
    captured = capsys.readouterr()
    assert "WARNING: shq: none of 12 rows is held out; raise --scale to validate\n" in captured.err
    assert re.search(r"shq\s+12 ", captured.out)


def test_the_module_runs_as_a_command_and_wrong_usage_exits_2() -> None:
    done = subprocess.run([sys.executable, "-m", "data_tools", "tokenise"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'tokenise'" in done.stderr


def test_a_sample_that_cannot_be_as_large_as_asked_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "--out", str(tmp_path), "--only", "base", "--scale", "2"]) == 0
    warning = capsys.readouterr().err
    assert re.search(r"WARNING: base: no more rows than these, of 3,000 asked for: library 1,\d{3}\n", warning)


def test_sample_says_what_was_there_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", "--out", str(tmp_path), "--only", "eval,shq", "--scale", "0.2"]
    assert main([*command, "--only", "eval"]) == 0
    assert main(command) == 0
    out = capsys.readouterr().out
    assert re.search(r"eval +96 +96 +[\d,]+ +48 +prompt .*was there", out)
    assert re.search(r"shq +168 +\d+ +[\d,]+ +12 +step by step .*yes", out)
    assert re.search(r"\d+ s, \d+ CPU s in all", out)


def test_status_of_one_dataset_says_that_it_has_no_shards(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split("tokenize --input in.jsonl --tokenizer tok --output out")) == 0
    capsys.readouterr()
    assert main(shlex.split("status out")) == 2
    assert capsys.readouterr().err == (
        "error: out: is one finished dataset and not shards; python -m data_tools inspect out shows it, "
        "verify checks it\n"
    )


@pytest.mark.parametrize("asked", ["sets", "sets/c"])
def test_a_dataset_that_is_not_there_names_those_that_are(
    data: Path, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    for name in ("a", "b"):
        assert main(shlex.split(f"tokenize --input in.jsonl --tokenizer tok --output sets/{name}")) == 0
    capsys.readouterr()
    assert main(shlex.split(f"inspect {asked}")) == 3
    assert "no such file; finished datasets there: sets/a, sets/b; make it with:" in capsys.readouterr().err
