"""A corpus in shards for tests of engines, and the command that tokenises it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_tools.progress import NoProgress
from data_tools.shards import Task, freeze_plan, make_plan, tokenize_shards
from data_tools.tokenize import TokenizeJob
from data_tools.tokenizer import train

SHARD_BYTES = 125_000
HOLD_OUT_PERCENT = 5.0


@dataclass(frozen=True)
class Corpus:
    """`in.jsonl` of 0.45 MB, so of four shards, and a tokenizer."""

    folder: Path

    def command(self, output: Path, *options: str, text: str = "in.jsonl") -> list[str]:
        """The command line that writes it, with paths relative to the folder where they can be."""
        arguments = ["--input", text, "--tokenizer", "tok", "--output", str(output), "--append-eod"]
        shards = ["--hold-out", f"{HOLD_OUT_PERCENT}%", "--shard-bytes", str(SHARD_BYTES)]
        return [sys.executable, "-m", "data_tools", "tokenize", *arguments, *shards, *options]

    def run(self, output: Path, *options: str, environment: Mapping[str, str], text: str = "in.jsonl") -> str:
        """Runs the command in the corpus's folder and gives all it prints, `exit N` first."""
        command = self.command(output, *options, text=text)
        return run(command, environment=environment, folder=self.folder)

    def write_here(self, output: Path, *, text: str = "in.jsonl") -> dict[str, bytes]:
        """What one undisturbed process writes."""
        tokenizer, source = self.folder / "tok", self.folder / text
        job = TokenizeJob((source,), tokenizer, output, append_eod=True, hold_out_percent=HOLD_OUT_PERCENT)
        plan = make_plan(job, shard_bytes=SHARD_BYTES)
        freeze_plan(output, plan, overwrite=False)
        tokenize_shards(job, plan, Task(), NoProgress())
        return content(output)


def run(command: list[str], *, environment: Mapping[str, str], folder: Path) -> str:
    """Runs a command and gives all it prints, `exit N` first."""
    done = subprocess.run(command, cwd=folder, env=dict(environment), capture_output=True, text=True, timeout=300)
    return f"exit {done.returncode}\n{done.stdout}{done.stderr}"


def content(output: Path) -> dict[str, bytes]:
    """The bytes of all shards, those of held-out documents included."""
    return {
        f"{folder.name.removeprefix(output.name)}/{path.name}": path.read_bytes()
        for folder in (output, Path(f"{output}.validation"))
        for path in folder.glob("*")
        if path.suffix in (".bin", ".idx", ".origin")
    }


def make_corpus(folder: Path) -> Corpus:
    """Writes it, with `bad.jsonl`, whose second shard has a malformed line, and `long.jsonl` of 18 MB."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgh ", k=6)) for _ in range(500)]
    rows = [json.dumps({"text": " ".join(generator.choices(words, k=70)), "id": str(n)}) for n in range(800)]
    (folder / "in.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "long.jsonl").write_text("\n".join(rows * 40) + "\n")
    (folder / "bad.jsonl").write_text("\n".join([*rows[:300], "{", *rows[301:]]) + "\n")
    train([folder / "in.jsonl"], "text", 400, folder / "tok")
    return Corpus(folder)
