"""A checkpoint of the product is judged as its export is by the harness's own `hf` model: the whole way, offline.

Tolerances as in test_lm_eval_vs_hf.py, which holds the same engine to harder cases with weights of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from megatron_ext.convert.export import export_checkpoint
from megatron_ext.evaluate.kept_items import KeptItems
from megatron_ext.evaluate.lm_eval_engine import engine_lm
from megatron_ext.evaluate.loading import opened_checkpoint
from megatron_ext.evaluate.options import Options
from megatron_ext.rollout.cli import find_checkpoint
from megatron_ext.runtime.launch import Launch
from tests.support.harness_tasks import Pair, both, write_tasks
from tests.support.toy_project import Run

TOLERANCE_NATS = 2e-4


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="module")
def exported(toy_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A trained checkpoint as the command opens it, and its export as the harness's `hf` model opens that."""
    checkpoint = find_checkpoint(toy_run.stage_folder)
    folder = tmp_path_factory.mktemp("export") / "toy"
    export_checkpoint(checkpoint, folder, say=lambda _: None)
    torch.set_num_threads(1)
    with (
        opened_checkpoint(checkpoint, Launch(rank=0, local_rank=0, world_size=1)) as opened,
        engine_lm(opened, Options(), items=KeptItems(folder, rank=0, lines=[]), label="toy", requests=1) as ours,
    ):
        yield ours, HFLM(str(folder), device="cpu", dtype="float32", batch_size=4)


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_a_trained_checkpoint_is_judged_as_its_export(exported: Pair, tasks: Path, num_fewshot: int) -> None:
    assert exported[0].max_length == exported[1].max_length == 64
    assert exported[0].prefix_token_id == exported[1].prefix_token_id
    for name in ("add_choice", "add_words", "add_generate", "add_prose"):
        ours, theirs = both(exported, tasks, name, num_fewshot=num_fewshot)
        for metric, value in theirs["results"][name].items():
            expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert ours["results"][name][metric] == expected, metric
        for one, another in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert one["arguments"] == another["arguments"]
            if name == "add_generate":
                assert one["filtered_resps"] == another["filtered_resps"]
            else:
                assert flat(one["filtered_resps"]) == pytest.approx(flat(another["filtered_resps"]), abs=TOLERANCE_NATS)


def flat(answers: list[Any]) -> list[float]:
    return [float(value) for answer in answers for value in (answer if isinstance(answer, list | tuple) else [answer])]
