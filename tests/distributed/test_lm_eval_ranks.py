"""Ranks that share the requests, and ranks that share the model, find what one process finds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from data_tools.errors import DataError
from megatron_ext.evaluate.kept_items import KeptItems
from megatron_ext.evaluate.lm_eval_engine import engine_lm
from megatron_ext.evaluate.lm_eval_tasks import load_tasks
from megatron_ext.evaluate.loading import opened_checkpoint
from megatron_ext.evaluate.options import Options
from megatron_ext.rollout.cli import find_checkpoint
from megatron_ext.runtime.launch import Launch
from tests.support.distributed import run_distributed
from tests.support.harness_tasks import write_tasks
from tests.support.toy_project import Run

KINDS = {"add_choice": "loglikelihood", "add_prose": "loglikelihood_rolling", "add_generate": "generate_until"}


@pytest.fixture(scope="module")
def checkpoint(toy_run: Run) -> Path:
    return find_checkpoint(toy_run.stage_folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("harness"), documents=7)  # not the same number for each rank


@pytest.fixture(scope="module")
def alone(checkpoint: Path, tasks: Path) -> dict[str, Any]:
    return run_distributed(answers, 1, checkpoint, tasks, 1)[0]


@contextlib.contextmanager
def kept() -> Iterator[KeptItems]:
    """Somewhere to keep answers; nobody goes on from them."""
    with tempfile.TemporaryDirectory() as folder:
        yield KeptItems(Path(folder), rank=0, lines=[])


def answers(checkpoint: Path, folder: Path, tensor_model_parallel_size: int) -> dict[str, Any]:
    launch = Launch.from_environment()
    found: dict[str, Any] = {}
    with opened_checkpoint(checkpoint, launch, tensor_model_parallel_size=tensor_model_parallel_size) as opened:
        for name, kind in KINDS.items():
            task = load_tasks(name, folder, asked_as=name).tasks[name]
            task.set_config(key="num_fewshot", value=1)
            task.set_fewshot_seed(seed=1)
            task.build_all_requests()
            with kept() as items, engine_lm(opened, Options(), items=items, label=name, requests=1) as lm:
                found[name] = getattr(lm, kind)(list(task.instances))
                found[f"{name} cuts"] = lm.cuts
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tensor_model_parallel_size", [1, 2], ids=["requests shared", "model shared"])
def test_two_ranks_find_what_one_finds(
    checkpoint: Path, tasks: Path, alone: dict[str, Any], tensor_model_parallel_size: int
) -> None:
    for found in run_distributed(answers, 2, checkpoint, tasks, tensor_model_parallel_size):
        assert found["add_generate"] == alone["add_generate"]
        assert found["add_generate cuts"] == alone["add_generate cuts"]
        assert found["add_prose"] == pytest.approx(alone["add_prose"], abs=1e-4)
        mine, other = found["add_choice"], alone["add_choice"]
        assert [one[0] for one in mine] == pytest.approx([one[0] for one in other], abs=1e-4)
        assert [one[1] for one in mine] == [one[1] for one in other]
        assert found["add_choice cuts"] == alone["add_choice cuts"]


def refusal_of_ranks(checkpoint: Path) -> str:
    launch = Launch.from_environment()
    with (
        opened_checkpoint(checkpoint, launch) as opened,
        kept() as items,
        engine_lm(opened, Options(), items=items, label="other", requests=1) as lm,
    ):
        asked = Instance(request_type="loglikelihood", doc={}, arguments=(f"of rank {launch.rank}", " A"), idx=0)
        with pytest.raises(DataError) as caught:
            lm.loglikelihood([asked])
    return str(caught.value)


@pytest.mark.slow
def test_ranks_that_were_asked_otherwise_are_refused(checkpoint: Path) -> None:
    for said in run_distributed(refusal_of_ranks, 2, checkpoint):
        assert said.startswith("the ranks made different questions of the same task: ")
