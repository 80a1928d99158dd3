"""kill -9 at random moments: never a bad pair accepted, and a re-run ends with the bytes of an undisturbed run.

Every other moment is drawn over the time that an undisturbed run takes, the others over what is left of it once
tokens are on the disk. What stands between two calls on the file system for too short a time to be hit so is
hit by `tests/unit/data_tools/test_tokenize_killed.py`, which strikes before every single one.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_tools.dataset import read_dataset
from data_tools.errors import DataError
from data_tools.manifest import read_manifest
from data_tools.tokenizer import train
from data_tools.verify import verify

COMMANDS = {
    "tokenize": "tokenize --input {corpus}/text.jsonl --append-eod --hold-out 5%",
    "shards": "tokenize --input {corpus}/text.jsonl --append-eod --hold-out 5% --shard-bytes 1M",
    "chat": "chat --input {corpus}/chat.jsonl --hold-out 5%",
}
SLOW_KILLS = {"tokenize": 34, "shards": 33, "chat": 33}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 MB in 10,000 documents, the same as conversations, and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgh ", k=6)) for _ in range(500)]
    texts = [" ".join(generator.choices(words, k=70)) for _ in range(10_000)]
    write_lines(folder / "text.jsonl", ({"text": text, "id": str(number)} for number, text in enumerate(texts)))
    write_lines(folder / "some.jsonl", ({"text": text} for text in texts[:200]))
    write_lines(folder / "chat.jsonl", map(conversation, texts))
    train([folder / "some.jsonl"], "text", 400, folder / "tok")
    time.sleep(
        2.1
    )  # from then on manifests record when an input was changed, those of later runs as those of the first
    return folder


def write_lines(path: Path, records: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def conversation(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text[:60]}, {"role": "assistant", "content": text[60:]}]}


def started(kind: str, corpus: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The command, whose dataset is `folder/set`."""
    arguments = COMMANDS[kind].format(corpus=corpus).split()
    arguments += ["--tokenizer", str(corpus / "tok"), "--output", str(folder / "set"), "--workers", "1"]
    command = [sys.executable, "-m", "data_tools", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_tokens(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Returns when some are on the disk, or the command has ended."""
    while process.poll() is None and not has_tokens(folder):
        time.sleep(0.005)


def has_tokens(folder: Path) -> bool:
    try:
        return any(path.stat().st_size for path in folder.rglob("*.bin*"))
    except FileNotFoundError:  # it has just got its name
        return True


def finish(kind: str, corpus: Path, folder: Path) -> dict[str, float]:
    """Runs the command to its end; returns the seconds that it took from its start, and from its first tokens."""
    began = time.monotonic()
    process = started(kind, corpus, folder)
    wait_for_tokens(process, folder)
    at_work = time.monotonic()
    said = process.communicate()[1]
    assert process.returncode == 0, said.decode()
    return {"start": time.monotonic() - began, "first tokens": time.monotonic() - at_work}


def is_killed(kind: str, corpus: Path, folder: Path, *, since: str, after_s: float) -> bool:
    """Runs the command and kills it; False if it was faster."""
    with started(kind, corpus, folder) as process:
        if since == "first tokens":
            wait_for_tokens(process, folder)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait() < 0
    return False


def content(folder: Path) -> dict[str, object]:
    """All that a command left: bytes; of manifests the fields, save those that tell of the run itself."""
    return {
        str(path.relative_to(folder)): fields_of(path) if path.name.endswith(".manifest.json") else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def fields_of(manifest: Path) -> dict[str, Any]:
    fields = json.loads(manifest.read_bytes())
    return {name: value for name, value in fields.items() if name not in ("created", "command")}


def check_readers(folder: Path, whole: Path) -> int:
    """Every pair is whole, to the last byte, or refused; returns how many are whole."""
    accepted = 0
    for manifest in whole.rglob("*.manifest.json"):
        expected = Path(str(manifest).removesuffix(".manifest.json"))
        prefix = folder / expected.relative_to(whole)
        if Path(f"{prefix}.manifest.json").exists():
            verify(prefix, deep=True)
            assert read_manifest(prefix).data_id == read_manifest(expected).data_id
            accepted += 1
        else:
            with pytest.raises(DataError):
                verify(prefix, deep=False)
    for name in ("set", "set.validation"):
        try:
            found = read_dataset(folder / name)
        except DataError:
            continue
        assert found.data_id == read_dataset(whole / name).data_id
    return accepted


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        *((kind, 2) for kind in COMMANDS),
        *(pytest.param(*item, marks=[pytest.mark.slow, pytest.mark.system]) for item in SLOW_KILLS.items()),
    ],
)
def test_killed_at_random_moments_a_command_ends_with_the_same_bytes(
    kind: str, kills: int, corpus: Path, tmp_path: Path
) -> None:
    took_s = finish(kind, corpus, whole := tmp_path / "whole")
    expected = content(whole)
    assert check_readers(whole, whole) >= 2
    generator, killed, attempts, at_work, part_done = random.Random(7), 0, 0, 0, 0
    while killed < kills:
        folder = tmp_path / str(attempts)
        attempts += 1
        since = "start" if killed % 2 else "first tokens"
        moment_s = took_s[since] * generator.uniform(0.3 if killed % 2 else 0.0, 1.0)
        if not is_killed(kind, corpus, folder, since=since, after_s=moment_s):
            assert content(folder) == expected
            took_s[since] = moment_s  # the machine is less busy than it was
            continue
        killed += 1
        part_done += check_readers(folder, whole) > 0
        at_work += any(folder.rglob("*.partial"))
        again_s = finish(kind, corpus, folder)
        took_s = {since: max(took_s[since], again_s[since]) for since in took_s}
        assert content(folder) == expected
        shutil.rmtree(folder)
    print(f"{kind}: {killed} kills, {at_work} with files in work, {part_done} with some datasets done")
