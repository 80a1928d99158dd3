"""A program that leaves what a stage leaves, in a tenth of a second: for tests of who starts it, how often, and when.

    python -m tests.support.stand_in_stage FOLDER --steps 6 --step-s 0.02 [--parent FOLDER]
        [--fails-while FILE] [--waits-while FILE]

It takes FOLDER/.lock, goes on from FOLDER/saved.json, adds to a number which begins as its parent's, and writes
metrics.jsonl, exit.json and stage.json as `megatron_ext.run` does. SIGTERM lets it save and end. `diary.txt` beside
the folder gets a line for each start and end; "refused" where another one was at work.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from data_tools.atomic_files import write_atomically


def main() -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("--parent", type=Path)
    parser.add_argument("--fails-while", type=Path)
    parser.add_argument("--waits-while", type=Path, help="behind each step, so that a test decides when it ends")
    asked = parser.parse_args()
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    asked.folder.mkdir(parents=True, exist_ok=True)
    with (asked.folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(asked.folder, "refused")
            print("error: another process is training this stage\nmegatron_ext.run: exit code 4", file=sys.stderr)
            return 4
        note(asked.folder, "begin")
        code = train(asked, stopped)
        note(asked.folder, f"end {code}")
        return code


def train(asked: argparse.Namespace, stopped: list[int]) -> int:
    """Adds up step by step, until a signal is in `stopped`."""
    folder: Path = asked.folder
    (folder / "exit.json").unlink(missing_ok=True)
    saved = folder / "saved.json"
    step, number = 0, 0
    if saved.is_file():
        step, number = json.loads(saved.read_bytes())
    elif asked.parent is not None:
        number = json.loads((asked.parent / "stage.json").read_bytes())["number"]
    if asked.fails_while is not None and asked.fails_while.exists():
        return end(folder, 5, "TrainingError", "the loss is nan")
    while step < asked.steps:
        time.sleep(asked.step_s)
        step, number = step + 1, (31 * number + step + 1) % 1_000_003
        with (folder / "metrics.jsonl").open("a") as metrics:
            metrics.write(json.dumps({"step": step, "loss": 1 / step, "tokens_per_s": 1000.0}) + "\n")
        while asked.waits_while is not None and asked.waits_while.exists() and not stopped:
            time.sleep(0.02)
        if step % 2 == 0 or stopped:
            put(saved, [step, number])
        if stopped and step < asked.steps:
            return end(folder, 5, "StoppedError", f"stopped by SIGTERM after step {step} of {asked.steps}")
    end(folder, 0, "finished", "finished")
    put(folder / "stage.json", {"number": number, "steps": step})
    return 0


def end(folder: Path, code: int, reason: str, message: str) -> int:
    """Writes exit.json and says the code."""
    put(folder / "exit.json", {"code": code, "reason": reason, "message": message})
    if code:
        print(f"error: {message}\nmegatron_ext.run: exit code {code}", file=sys.stderr, flush=True)
    return code


def put(path: Path, value: Any) -> None:
    """Writes JSON."""
    write_atomically(path, json.dumps(value).encode())


def note(folder: Path, what: str) -> None:
    """A line in the diary."""
    with (folder.parent / "diary.txt").open("a") as diary:
        diary.write(f"{folder.name} {what}\n")


if __name__ == "__main__":
    sys.exit(main())
