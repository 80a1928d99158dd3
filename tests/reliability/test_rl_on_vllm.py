"""An rl stage whose completions come from a server that takes over each step's weights.

The server speaks vLLM's recorded interface and samples with transformers from the folder that is pushed to it
(`tests/support/vllm_server.py`): log-probabilities of both sides are real.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
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


@pytest.mark.slow
def test_two_tensor_parallel_ranks_push_whole_weights_and_share_what_one_of_them_asks_for(
    project: ToyProject, server: Served
) -> None:
    root = lucky_run_root(project, "tp2")
    two = ("parallel.tensor_model_parallel_size=2", "training.max_steps=2")
    code, said = run(project, root, server, *two, ranks=2)
    assert code == 0, said
    assert all(line["mismatch_mean"] < AGREED for line in metrics_of(root))
    texts = len(server.requests)
    assert texts == 2 * 4 * 2 + 2 * 8  # two steps; held-out prompts before the first and behind the second
