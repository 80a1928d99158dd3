"""A checkpoint that is written while training goes on is the checkpoint of its step, complete, or not there."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import SetupError
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.training.file_list import checkpoints_of, damage_of
from megatron_ext.training.parts import make_parts
from megatron_ext.training.saving import CheckpointWrite
from megatron_ext.training.state import TrainState
from tests.support.one_process import one_process
from tests.support.toy_project import REPOSITORY, Run, ToyProject, environment

EVERY_STEP = ("checkpoint.interval_tokens=512", "checkpoint.keep_last=20")
ASYNC = "checkpoint.async_save=true"


def hashes(run: Run, step: int) -> dict[str, Any]:
    """What the ranks wrote, counters and cursor; not the plan, which names the way of saving."""
    listed = json.loads((run.stage_folder / "checkpoints" / f"step_{step}" / "files.json").read_text())
    return {name: facts for name, facts in listed.items() if name.endswith(".distcp") or name == "state.json"}


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [(None, ()), pytest.param(2, ("parallel.use_distributed_optimizer=true",), marks=pytest.mark.slow)],
)
def test_every_byte_is_that_of_a_save_that_training_waited_for(
    toy_project: ToyProject, tmp_path: Path, processes: int | None, overrides: tuple[str, ...]
) -> None:
    keys = (*EVERY_STEP, *overrides, "training.max_steps=4")
    waited = toy_project.run(tmp_path / "waited", *keys, processes=processes)
    meanwhile = toy_project.run(tmp_path / "meanwhile", *keys, ASYNC, processes=processes)
    assert (waited.code, meanwhile.code) == (0, 0), waited.output + meanwhile.output
    assert meanwhile.losses == waited.losses
    for step in range(1, 5):
        assert hashes(meanwhile, step) == hashes(waited, step), f"step {step}"


def test_a_snapshot_does_not_follow_the_weights(toy_project: ToyProject, tmp_path: Path) -> None:
    """The writer gets nothing done before the weights change: the worst case, made certain."""
    with one_process() as groups:
        parts = make_small_parts(toy_project, groups)
        waited = CheckpointWrite(tmp_path / "waited", parts, TrainState(step=1)).finish()
        write = CheckpointWriteLate(tmp_path / "late", parts, TrainState(step=1), in_background=True)
        for parameter in parts.model.parameters():
            parameter.data.fill_(7.0)
        write.let_go()
        late = write.finish()
    assert (late / "__0_0.distcp").read_bytes() == (waited / "__0_0.distcp").read_bytes()


def test_a_rank_that_cannot_write_ends_the_run_and_leaves_no_checkpoint(
    toy_project: ToyProject, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with one_process() as groups:
        parts = make_small_parts(toy_project, groups)
        CheckpointWrite(tmp_path, parts, TrainState(step=1)).finish()
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            write = CheckpointWrite(tmp_path, parts, TrainState(step=2), in_background=True)
            with pytest.raises(SetupError, match=r"writing_step_2: cannot be written(.|\n)*bytes are free there"):
                write.finish()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, previous)
    assert checkpoints_of(tmp_path) == [tmp_path / "step_1"]
    assert not damage_of(tmp_path / "step_1")


@pytest.mark.slow
def test_kill_minus_nine_while_writing_leaves_whole_checkpoints_only_and_no_process(
    toy_project: ToyProject, tmp_path: Path
) -> None:
    whole = toy_project.run(tmp_path / "whole", *EVERY_STEP)
    process = subprocess.Popen(
        toy_project.command(tmp_path / "killed", *EVERY_STEP, ASYNC),
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_a_write_behind_step(tmp_path / "killed", 2)
    process.kill()
    output, _ = process.communicate(timeout=20)  # returns only when nobody holds the pipe
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    killed = Run(code=-9, output=output, run_root=tmp_path / "killed")
    kept = checkpoints_of(killed.stage_folder / "checkpoints")
    assert kept
    assert [line for path in kept for line in damage_of(path)] == []
    rest = toy_project.run(tmp_path / "killed", *EVERY_STEP, ASYNC)
    assert rest.code == 0, rest.output
    assert rest.losses == whole.losses


class CheckpointWriteLate(CheckpointWrite):
    """A writer whose disk is slow: it begins when it is let go."""

    _may_begin = False

    def let_go(self) -> None:
        self._may_begin = True

    def _write(self) -> None:
        while not self._may_begin:
            time.sleep(0.001)
        super()._write()


def make_small_parts(project: ToyProject, groups: Any) -> Any:
    loaded = load_recipe(project.recipe, overrides=[], site=project.root / "site.yaml")
    return make_parts(make_stage_plan(loaded, world_size=1), groups)


def wait_for_a_write_behind_step(run_root: Path, step: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for path in run_root.glob("stages/*/checkpoints/.writing_step_*"):
            if int(path.name.rsplit("_", 1)[1]) > step:
                return
        time.sleep(0.001)
    pytest.fail(f"no checkpoint behind step {step} was begun within 90 s")
