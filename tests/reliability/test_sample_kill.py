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
    return {path.name: path.read_bytes() for path in folder.glob("*.json*")}


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(tmp_path: Path) -> None:
    start = time.monotonic()
    subprocess.run([*COMMAND, "--out", tmp_path / "undisturbed"], check=True, capture_output=True)
    took_s = time.monotonic() - start
    whole = content(tmp_path / "undisturbed")
    out = tmp_path / "killed"
    for part in (0.3, 0.5, 0.7, 0.9):
        process = subprocess.Popen(
            [*COMMAND, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
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
    assert not list(out.glob("*.lock"))
    assert "samples in" in done.stdout
