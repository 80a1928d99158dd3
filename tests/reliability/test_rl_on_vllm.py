"""An rl stage whose completions come from a server that takes over each step's weights.

The server speaks vLLM's recorded interface and samples with transformers from the folder that is pushed to it
(`tests/support/vllm_server.py`): log-probabilities of both sides are real.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.convert.export import export_checkpoint
from megatron_ext.datasets.rollout_file import read_rollouts
from megatron_ext.plan.vllm import SERVERS
from megatron_ext.training.file_list import checkpoints_of
from tests.support.distributed import run_distributed
from tests.support.lucky_project import lucky_run_root, make_lucky_project, policy_folder
from tests.support.toy_project import ToyProject
from tests.support.vllm_server import Served, serving

AGREED = 1e-6
"""Nats, of the mean; 2e-8 was measured. The two programs add the same float32 products in other orders."""

KEYS = ("rl.max_new_tokens=12", "training.validation_interval_tokens=704", "checkpoint.interval_tokens=704")
"""Steps of 4 prompts x 2 samples x 44 tokens; validated and saved after two of them."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    project = make_lucky_project(tmp_path_factory.mktemp("vllm_run"))
    export_checkpoint(checkpoints_of(policy_folder(project) / "checkpoints")[-1], project.root / "policy")
    return project


@pytest.fixture
def server(project: ToyProject) -> Iterator[Served]:
    with serving(project.root / "policy") as served:
        yield served


def run(project: ToyProject, root: Path, server: Served, *overrides: str, ranks: int = 1) -> tuple[int, str]:
    """Exit code and output of the first rank; three steps, if nothing else is said."""
    keys = ("rl.engine=vllm", *KEYS, "training.max_steps=3", *overrides)
    arguments = [str(project.root / "rl.yaml"), "--site", str(project.root / "site.yaml"), "--run-root", str(root)]
    arguments += [part for key in keys for part in ("--set", key)]
    return run_distributed(run_here, ranks, arguments, str(project.root), server.url, timeout_s=240)[0]


def run_here(arguments: list[str], folder: str, url: str) -> tuple[int, str]:
    """Runs the command in a rank of its own, with a second of patience instead of minutes."""
    from megatron_ext.rollout import vllm_pool
    from megatron_ext.run import main

    vllm_pool.WAITS_S = (0.2, 0.3)
    os.environ[SERVERS] = url
    os.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(arguments)
    return code, said.getvalue()


def stage_of(root: Path) -> Path:
    (stage,) = root.glob("stages/rl-*")
    return stage


def metrics_of(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage_of(root) / "metrics.jsonl").read_text().splitlines()]


def prompts_of(root: Path) -> list[list[str]]:
    """The prompts of each step, in the order in which they were drawn."""
    steps = range(1, 1 + len(metrics_of(root)))
    return [[record["prompt_id"] for record in read_rollouts(stage_of(root), step)[1]] for step in steps]


def dies_when_asked_for(server: Served, step: int) -> None:
    def before_text() -> None:
        server.is_dead = server.is_dead or server.label.endswith(f"/step_{step}")

    server.before_text = before_text


def test_a_stage_outlives_its_server_and_learns_from_the_in_process_engines_prompts(
    project: ToyProject, server: Served
) -> None:
    root = lucky_run_root(project, "served")
    dies_when_asked_for(server, 1)
    code, said = run(project, root, server)
    assert code == 5, said
    assert "No vLLM server gives an answer" in said
    assert "Traceback" not in said
    assert [path.name for path in checkpoints_of(stage_of(root) / "checkpoints")] == ["step_1"]

    server.start_again()
    server.before_text = lambda: None
    code, said = run(project, root, server)
    assert code == 0, said
    assert "it has not met a GPU yet, and its tokens cannot be sampled again" in said
    assert [label.rpartition("/")[2] for label in server.pushed] == ["step_0", "step_1", "step_1", "step_2", "step_3"]
    assert not (stage_of(root) / "policy").exists()
    lines = metrics_of(root)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["mismatch_mean"] < AGREED for line in lines), lines
    assert all(line["grad_norm"] > 0 for line in lines)

    here = lucky_run_root(project, "in_process")
    done = project.run(here, *KEYS, "training.max_steps=3", recipe=project.root / "rl.yaml")
    assert done.code == 0, done.output
    assert prompts_of(root) == prompts_of(here)


def test_weights_that_a_server_says_it_took_and_did_not_stop_the_stage_before_it_learns(
    project: ToyProject, server: Served
) -> None:
    root = lucky_run_root(project, "deaf")
    server.is_deaf = True
    code, said = run(project, root, server, f"rl.mismatch_threshold={AGREED}")
    assert code == 5, said
    assert "step 2: sampler and trainer disagree" in said  # with the first step's weights they agree
    assert [line["step"] for line in metrics_of(root)] == [1]


@pytest.mark.slow
def test_texts_of_a_server_that_was_started_again_are_not_counted(project: ToyProject, server: Served) -> None:
    root = lucky_run_root(project, "restarted")

    def before_text() -> None:
        if server.label.endswith("/step_1"):
            server.start_again()

    server.before_text = before_text
    code, said = run(project, root, server)
    assert code == 5, said
    assert "sampled with weights default, and rl-" in said
    assert [line["step"] for line in metrics_of(root)] == [1]


@pytest.mark.slow
def test_a_server_that_dies_in_a_validation_loses_no_step(project: ToyProject, server: Served) -> None:
    root = lucky_run_root(project, "validation")
    dies_when_asked_for(server, 2)  # the second step is learned, and its weights are validated first
    code, said = run(project, root, server)
    assert code == 5, said
    assert [line["step"] for line in metrics_of(root)] == [1, 2]
    assert checkpoints_of(stage_of(root) / "checkpoints")[-1].name == "step_2"


def test_without_servers_nothing_is_trained(project: ToyProject, tmp_path: Path) -> None:
    done = project.run(tmp_path / "runs", "rl.engine=vllm", recipe=project.root / "rl.yaml")
    assert done.code == 4
    assert f"{SERVERS}: not set, and rl.engine is vllm" in done.output
    assert not (tmp_path / "runs").exists()


@dataclass
class Watched:
    """What a server was sent: the most texts and folders of weights at once, and files that are not the export's."""

    server: Served
    export: Path
    texts: int = 0
    most_texts: int = 0
    most_folders: int = 0
    differing: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.server.before_text, self.server.changed = self.begin, self.end

    def begin(self) -> None:
        with self.lock:
            self.texts += 1
            self.most_texts = max(self.most_texts, self.texts)
            self.most_folders = max(self.most_folders, len(list(self.server.folder.parent.iterdir())))
            if self.server.label.endswith("/step_0"):  # the parent's weights
                self.differing |= {name for name, _ in weights(self.server.folder) ^ weights(self.export)}

    def end(self, choice: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.texts -= 1
        return choice


def weights(folder: Path) -> set[tuple[str, bytes]]:
    """The files that hold them."""
    return {(path.name, path.read_bytes()) for path in folder.glob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "num_asking"), [("tensor", 1), ("data", 2)])
def test_two_ranks_push_whole_weights_and_ask_for_each_text_once(
    project: ToyProject, server: Served, kind: str, num_asking: int
) -> None:
    """Weights of step 0 are those that `export` writes; each rank that asks has two texts in the making."""
    root = lucky_run_root(project, f"{kind}2")
    watched = Watched(server, project.root / "policy")
    keys = ["rl.slots=2", "training.max_steps=2"]
    keys += ["parallel.tensor_model_parallel_size=2"] if kind == "tensor" else []
    code, said = run(project, root, server, *keys, ranks=2)
    assert code == 0, said
    assert all(line["mismatch_mean"] < AGREED for line in metrics_of(root))
    assert [label.rpartition("/")[2] for label in server.pushed] == ["step_0", "step_1", "step_2"]
    assert len(server.requests) == 2 * 4 * 2 + 2 * 8  # two steps; held-out prompts before and behind them
    assert (watched.most_texts, watched.most_folders, watched.differing) == (2 * num_asking, 1, set())
    known = json.loads((stage_of(root) / "plan.json").read_text())["data"]["tokenizer_vocab_size"]
    padding = {str(token) for token in range(known, 1024)}  # ids of the model that the tokenizer has not
    assert {frozenset(body["logit_bias"]) for body in server.requests} == {frozenset(padding)}
