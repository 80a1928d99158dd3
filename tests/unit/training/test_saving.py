"""One checkpoint is written at a time, and each carries the tokenizer as it was at the first."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data_tools.errors import SetupError
from megatron_ext.plan.stage_plan import ExecutionPlan
from megatron_ext.runtime.parallel import Waits
from megatron_ext.training import saving, walk
from megatron_ext.training.file_list import checkpoints_of, damage_of
from megatron_ext.training.loop import Outcome
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.saving import CheckpointWrite, Saver
from megatron_ext.training.stage_folder import StageFolder
from megatron_ext.training.state import TrainState
from tests.support.one_process import one_process
from tests.support.plans import make_plan
from tests.support.sources import plan_reading, write_source, write_tokenizer


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    """Saves after every step, while training goes on."""
    write_source(tmp_path / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
    plan = plan_reading(
        {"toy": (tmp_path / "toy", 16)},
        global_batch_size=4,
        tokenizer=write_tokenizer(tmp_path / "tokenizer"),
        cadence={"checkpoint_interval_steps": 1},
        execution=ExecutionPlan(async_save=True),
    )
    with one_process() as groups:
        yield make_parts(plan, groups)


def test_a_save_that_comes_too_early_waits_and_says_so(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_heard = threading.Event()
    said: list[str] = []

    class WriteToSlowDisk(CheckpointWrite):
        def _write(self) -> None:
            assert is_heard.wait(timeout=60)
            super()._write()

    def say(text: str) -> None:
        said.append(text)
        is_heard.set()

    monkeypatch.setattr(saving, "CheckpointWrite", WriteToSlowDisk)
    with Saver(parts, tmp_path / "checkpoints", say=say, waits=Waits()) as saver:
        saver.after_step(TrainState(step=1), is_last=False)
        assert said == []
        saver.after_step(TrainState(step=2), is_last=False)
        assert said == ["step 2: waits for the checkpoint of step 1 to be written"]
    kept = checkpoints_of(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step_1", "step_2"]
    assert [damage_of(path) for path in kept] == [[], []]


def test_while_they_save_ranks_wait_for_each_other_as_long_as_at_the_start(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []

    def look() -> None:
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
        seconds.append(backend.options._timeout.total_seconds())

    class ObservedWrite(CheckpointWrite):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            look()
            super().__init__(*args, **kwargs)

        def finish(self) -> Path:
            look()
            return super().finish()

    monkeypatch.setattr(saving, "CheckpointWrite", ObservedWrite)
    waits = Waits(start=timedelta(seconds=50), step=timedelta(seconds=7))
    waits.begin_steps()
    with Saver(parts, tmp_path / "checkpoints", say=lambda _: None, waits=waits) as saver:
        look()
        saver.after_step(TrainState(step=1), is_last=True)
        look()
    assert seconds == [7, 50, 50, 7]


def test_the_tokenizer_is_read_at_the_first_save(parts: Parts, tmp_path: Path) -> None:
    CheckpointWrite(tmp_path / "checkpoints", parts, TrainState(step=1)).finish()
    shutil.rmtree(tmp_path / "tokenizer")
    second = CheckpointWrite(tmp_path / "checkpoints", parts, TrainState(step=2)).finish()
    assert (second / "tokenizer" / "tokenizer.json").read_text() == "{}"


def test_a_tokenizer_that_cannot_be_read_is_named(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(SetupError, match="tokenizer: the tokenizer cannot be read"):
        CheckpointWrite(tmp_path / "checkpoints", parts, TrainState(step=1))
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_stage_says_how_many_updates_were_skipped(tmp_path: Path) -> None:
    """They changed what was trained, and the stage's id does not show it."""
    plan = make_plan()
    folder = StageFolder(tmp_path, plan)
    folder.path.mkdir(parents=True)
    folder.metrics_file.write_text(json.dumps({"loss": 1.0, "validation": {}}) + "\n")
    facts: dict[str, Any] = walk._stage_facts(plan, folder, Outcome(TrainState(step=10, skipped_steps=2), "finished"))
    assert facts["state"]["skipped_steps"] == 2
