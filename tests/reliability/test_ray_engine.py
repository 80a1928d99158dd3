"""A shard plan on a real Ray: whole, with a failing shard, with a killed worker, on a cluster that runs already."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_tools.shards import status
from tests.support.shard_jobs import Corpus, content, make_corpus

pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.skipif(find_spec("ray") is None, reason="not run: ray is not installed"),
]

REPOSITORY = Path(__file__).parents[2]
RAY = ("--engine", "ray")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Ray's sockets and token in a folder of their own; not below tmp_path, as a socket's path may have 107 bytes."""
    folder = tempfile.mkdtemp(prefix="ray-")
    own = {"RAY_TMPDIR": folder, "HOME": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    yield os.environ | own | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    shutil.rmtree(folder, ignore_errors=True)


def states(output: Path) -> list[str]:
    return [shard.state for shard in status(output)]


def wait_for(what: str, is_so: Callable[[], object], *, timeout_s: float = 180.0) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


def writer_of(prefix: Path) -> int | None:
    """The process that holds PREFIX.lock."""
    try:
        inode = str(Path(f"{prefix}.lock").stat().st_ino)
    except FileNotFoundError:
        return None
    locks = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return next((int(lock[4]) for lock in locks if lock[5].rpartition(":")[2] == inode), None)


def test_ray_writes_what_one_process_writes(corpus: Corpus, environment: dict[str, str], tmp_path: Path) -> None:
    said = corpus.run(tmp_path / "all", *RAY, environment=environment)
    assert said.startswith("exit 0\n"), said
    assert len(status(tmp_path / "all")) == 4
    assert content(tmp_path / "all") == corpus.write_here(tmp_path / "one")
    again = corpus.run(tmp_path / "all", *RAY, environment=environment)
    assert "│ written now │ 0" in again


def test_a_shard_that_fails_leaves_the_others_and_is_all_that_runs_again(
    corpus: Corpus, environment: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "all"
    said = corpus.run(output, *RAY, "--max-running", "1", environment=environment, text="bad.jsonl")
    assert said.startswith("exit 3\n")
    assert "1 of 4 shards failed:\n  shard-00001: bad.jsonl:301: malformed" in said
    assert states(output) == ["done", "failed", "done", "done"]
    again = corpus.run(output, *RAY, "--on-error", "skip", environment=environment, text="bad.jsonl")
    assert "│ written now │ 1" in again
    assert states(output) == ["done"] * 4


def test_a_killed_worker_is_replaced_and_a_killed_driver_is_resumed(
    corpus: Corpus, environment: dict[str, str], tmp_path: Path
) -> None:
    """The slow encoder and two shards at once, so that there is time to strike."""
    output = tmp_path / "all"
    options = (*RAY, "--bpe", "tokenizers", "--shard-bytes", "5000000", "--max-running", "2")
    command = corpus.command(output, *options, text="long.jsonl")
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, cwd=corpus.folder, env=environment, stdout=log, stderr=log)
    try:
        wait_for("shard 1 is in work", (output / "shard-00001.bin.partial").exists)
        assert "running" in states(output)
        worker = writer_of(output / "shard-00001")
        assert worker
        os.kill(worker, signal.SIGKILL)
        wait_for("shard 1 is done by another", lambda: states(output)[1] == "done")
    finally:
        driver.kill()
        driver.wait()
    wait_for("the workers have ended with their driver", lambda: "running" not in states(output))
    assert corpus.run(output, *options, environment=environment, text="long.jsonl").startswith("exit 0\n")
    assert states(output) == ["done"] * 4


def test_a_cluster_that_runs_is_used_at_its_address(
    corpus: Corpus, environment: dict[str, str], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=3"]
    quiet = ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={environment['RAY_TMPDIR']}/head"]
    with (tmp_path / "log").open("wb") as log:
        head = subprocess.Popen([*ray, *quiet], env=environment, stdout=log, stderr=log, start_new_session=True)
    address = ("--ray-address", f"127.0.0.1:{port}")
    try:
        wait_for("the head runs", lambda: "Ray runtime started" in (tmp_path / "log").read_text())
        refused = corpus.run(tmp_path / "all", *RAY, *address, "--workers", "4", environment=environment)
        assert "--workers 4: no node of the Ray cluster has more than 3 CPUs" in refused
        said = corpus.run(tmp_path / "all", *RAY, *address, environment=environment)
        assert said.startswith("exit 0\n"), said
        assert states(tmp_path / "all") == ["done"] * 4
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # its daemons too; asked to end, they take half a minute
        head.wait()


def test_no_cluster_at_the_address_is_said(corpus: Corpus, environment: dict[str, str], tmp_path: Path) -> None:
    said = corpus.run(tmp_path / "all", *RAY, "--ray-address", "127.0.0.1:1", environment=environment)
    assert said.startswith("exit 4\n"), said
    assert "--ray-address 127.0.0.1:1: " in said
