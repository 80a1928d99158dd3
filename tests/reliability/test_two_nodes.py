"""Two torchruns that meet by themselves, as on two machines: what is lost with one of them, and what is not.

One machine plays both: the ranks of each torchrun know of the other's only what comes over the network.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.distributed import _free_port
from tests.support.ranks import ranks_of
from tests.support.toy_project import REPOSITORY, Run, ToyProject, environment

pytestmark = [pytest.mark.slow, pytest.mark.system]

LONG = (
    "budget.tokens=20_480",  # 40 steps
    "checkpoint.interval_tokens=5_120",  # 10 steps
    "training.validation_interval_tokens=20_480",
    "training.micro_batch_size=1",
)
FRESH = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
HOST = socket.gethostname()


class Node:
    """A torchrun of one rank, and what both print."""

    def __init__(self, project: ToyProject, run_root: Path, name: str, *, port: int, restarts: int = 0) -> None:
        python, module, torchrun, *_, nproc = project.command(run_root, processes=1)[:5]
        meet = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=toy"]
        options = [*meet, nproc, f"--max-restarts={restarts}", "--local-addr=127.0.0.1"]
        self.log = run_root.parent / f"{name}.log"
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [python, module, torchrun, *options, *project.command(run_root, *LONG)[1:]],
                cwd=REPOSITORY,
                env=environment() | (FRESH if restarts else {}),
                stdout=file,
                stderr=file,
            )

    @property
    def rank(self) -> int:
        """The number that the nodes have agreed on; one runs on each."""
        return next(iter(ranks_of(self.process.pid)))

    def lose(self) -> None:
        """As if the power of its machine went."""
        ranks = ranks_of(self.process.pid)
        for process in (self.process.pid, *ranks.values()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()

    def end(self) -> str:
        """Waits for its end; what was printed."""
        self.process.wait(600)
        return self.log.read_text()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Whatever runs at the end of a test is killed."""
    started: list[Node] = []
    yield started
    for node in started:
        if node.process.poll() is None:
            node.lose()


@pytest.fixture(scope="module")
def undisturbed(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The stage, trained by two ranks to its end."""
    run = toy_project.run(tmp_path_factory.mktemp("undisturbed"), *LONG, processes=2, timeout_s=600)
    assert run.code == 0, run.output
    return run


def start_two(project: ToyProject, run_root: Path, nodes: list[Node], *, restarts: int = 0) -> tuple[int, Node, Node]:
    """The port and both nodes; the first is there before the second, so the others find each other through it."""
    port = _free_port()
    first = Node(project, run_root, "first", port=port, restarts=restarts)
    nodes.append(first)
    wait_until("somebody listens", lambda: is_listening(port))
    second = Node(project, run_root, "second", port=port, restarts=restarts)
    nodes.append(second)
    return port, first, second


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def steps_of(run_root: Path) -> int:
    files = list(run_root.glob("stages/*/metrics.jsonl"))
    return files[0].read_text().count("\n") if files else 0


def stage_folder(run_root: Path) -> Path:
    (found,) = run_root.glob("stages/*")
    return found


def stage_file(folder: Path) -> bytes:
    return (folder / "stage.json").read_bytes()


def sentence(lost_rank: int, *, is_store_gone: bool) -> str:
    if is_store_gone:
        return "error: another rank was lost. Rank 0 or its machine (127.0.0.1) does not answer"
    return f"error: another rank was lost. No sign of rank {lost_rank} ({HOST}): gone, standing still, or not reached."


@pytest.mark.parametrize("is_first_lost", [False, True], ids=["second", "first"])
def test_when_one_node_is_lost_the_other_names_it_and_ends_and_both_started_again_end_as_if_undisturbed(
    toy_project: ToyProject, undisturbed: Run, tmp_path: Path, nodes: list[Node], is_first_lost: bool
) -> None:
    run_root = tmp_path / "runs"
    _, first, second = start_two(toy_project, run_root, nodes)
    wait_until("step 12", lambda: steps_of(run_root) >= 12)
    lost, left = (first, second) if is_first_lost else (second, first)
    said = sentence(lost.rank, is_store_gone=lost.rank == 0)
    lost.lose()
    printed = left.end()
    assert left.process.returncode == 1, printed  # torchrun's, for any failure
    assert said in printed, printed
    assert re.findall(r"exit code \d+", printed) == ["exit code 4"]
    ending = json.loads((stage_folder(run_root) / "exit.json").read_text())
    assert (ending["code"], ending["reason"]) == (4, "LostRankError")
    assert not (stage_folder(run_root) / "stage.json").exists()

    _, first, second = start_two(toy_project, run_root, nodes)
    printed = first.end() + second.end()
    assert (first.process.returncode, second.process.returncode) == (0, 0), printed
    assert "goes on at step 10 " in printed
    assert (stage_folder(run_root) / "stage.json").read_bytes() == (
        undisturbed.stage_folder / "stage.json"
    ).read_bytes()


def test_with_restarts_the_other_waits_for_a_lost_node_and_goes_on_with_its_successor(
    toy_project: ToyProject, undisturbed: Run, tmp_path: Path, nodes: list[Node]
) -> None:
    run_root = tmp_path / "runs"
    port, first, second = start_two(toy_project, run_root, nodes, restarts=2)
    wait_until("step 12", lambda: steps_of(run_root) >= 12)
    said = sentence(second.rank, is_store_gone=second.rank == 0)
    second.lose()
    successor = Node(toy_project, run_root, "successor", port=port, restarts=2)
    nodes.append(successor)
    printed = first.end()
    assert first.process.returncode == 0, printed
    assert successor.process.wait(60) == 0, successor.log.read_text()
    assert said in printed, printed
    printed += successor.log.read_text()
    assert "goes on at step 10 " in printed
    assert re.findall(r"\(exitcode: (-?\d+)\)", printed) == ["4"]  # no rank aborted at its end
    assert (stage_folder(run_root) / "stage.json").read_bytes() == (
        undisturbed.stage_folder / "stage.json"
    ).read_bytes()
