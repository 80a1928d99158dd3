"""kill -9 at random moments: never a bad pair accepted, and a re-run ends with the bytes of an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.progress import NoProgress
from data_tools.shards import Task as ShardTask
from data_tools.shards import freeze_plan, make_plan, shard_prefix, status, tokenize_shards
from data_tools.tokenize import TokenizeJob
from data_tools.tokenizer import train
from data_tools.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.system]

KILLS = 8
SHARD_BYTES = 250_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 MB in 4,000 documents, and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgh ", k=6)) for _ in range(500)]
    rows = [json.dumps({"text": " ".join(generator.choices(words, k=70)), "id": str(n)}) for n in range(4_000)]
    (folder / "in.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "some.jsonl").write_text("\n".join(rows[:200]) + "\n")
    train([folder / "some.jsonl"], "text", 400, folder / "tok")
    return folder


def command(corpus: Path, output: Path) -> list[str]:
    arguments = ["--input", str(corpus / "in.jsonl"), "--tokenizer", str(corpus / "tok"), "--output", str(output)]
    options = ["--append-eod", "--hold-out", "5%", "--shard-bytes", str(SHARD_BYTES), "--workers", "1"]
    return [sys.executable, "-m", "data_tools", "tokenize", *arguments, *options]


def content(output: Path) -> dict[str, bytes]:
    """All bytes of all finished shards, those of held-out documents included."""
    return {
        f"{folder.name.removeprefix(output.name)}/{path.name}": path.read_bytes()
        for folder in (output, Path(f"{output}.validation"))
        for path in folder.glob("*")
        if path.suffix in (".bin", ".idx", ".origin")
    }


def undisturbed(corpus: Path, output: Path) -> None:
    job = TokenizeJob((corpus / "in.jsonl",), corpus / "tok", output, append_eod=True, hold_out_percent=5.0)
    plan = make_plan(job, shard_bytes=SHARD_BYTES)
    freeze_plan(output, plan, overwrite=False)
    tokenize_shards(job, plan, ShardTask(), NoProgress())


def accepted(output: Path) -> int:
    """Checks every byte of every shard that a reader would take; returns how many there are."""
    if not (output / "plan.json").exists():
        return 0
    shards = status(output)
    assert {shard.state for shard in shards} <= {"done", "missing"}
    for shard in shards:
        for prefix in (shard.prefix, shard_prefix(Path(f"{output}.validation"), int(shard.prefix.name[-5:]))):
            if Path(f"{prefix}.manifest.json").exists():
                verify(prefix, deep=True)
            else:
                with pytest.raises(DataError):
                    verify(prefix, deep=False)
    return sum(shard.state == "done" for shard in shards)


def test_killed_at_random_moments_it_ends_with_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    undisturbed(corpus, tmp_path / "whole")
    output = tmp_path / "out"
    began = time.monotonic()
    assert subprocess.run(command(corpus, tmp_path / "timed"), capture_output=True).returncode == 0
    took_s = time.monotonic() - began
    generator, killed, done = random.Random(7), 0, [0]
    while killed < KILLS:
        process = subprocess.Popen(command(corpus, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(took_s * generator.uniform(0.1, 1.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        done.append(accepted(output))
        assert done[-1] >= done[-2]  # what was finished stays finished
        if done[-1] == len(status(output) if (output / "plan.json").exists() else [None]):
            assert content(output) == content(tmp_path / "whole")
            output = tmp_path / f"out{killed}"  # all is done: the next kills strike a new one
            done = [0]
    assert subprocess.run(command(corpus, output), capture_output=True).returncode == 0
    accepted(output)
    assert content(output) == content(tmp_path / "whole")
