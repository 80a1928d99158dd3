"""kill -9 while samples are made: nothing half-made is taken for whole, no process stays, a re-run completes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.system]

COMMAND = [sys.executable, "-m", "data_tools", "sample", "--scale", "0.5", "--workers", "2", "--only", "ldq,shq,rl"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.suffix in (".json", ".jsonl")}


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def wait_for_a_file(process: subprocess.Popen[bytes], out: Path) -> None:
    """Returns when one more file has its name, or the command has ended."""
    before = set(content(out))
    while process.poll() is None and set(content(out)) <= before:
        time.sleep(0.005)


def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(tmp_path: Path) -> None:
    start = time.monotonic()
    subprocess.run([*COMMAND, "--out", tmp_path / "undisturbed"], check=True, capture_output=True)
    took_s = time.monotonic() - start
    whole = content(tmp_path / "undisturbed")
    out = tmp_path / "killed"
    for part in (0.3, None, 0.6, None, 0.9):
        process = subprocess.Popen(
            [*COMMAND, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        if part is None:
            wait_for_a_file(process, out)
        else:
            time.sleep(part * took_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for _ in range(100):
            if group_is_gone(process.pid):
                break
            time.sleep(0.1)
        assert group_is_gone(process.pid), "a worker outlived the command"
        for name, found in content(out).items():
            assert found == whole[name], name
    done = subprocess.run([*COMMAND, "--out", out], check=True, capture_output=True, text=True)
    assert content(out) == whole
    assert {path.name for path in out.iterdir()} == set(whole)
    assert "samples in" in done.stdout
