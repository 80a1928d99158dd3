"""Checkpoints: written beside, renamed into place, read back exactly.

A checkpoint is the folder `checkpoints/step_N/`:

    plan.json        the stage plan that wrote it
    state.json       counters, data cursor, layout
    tokenizer/       the tokenizer's files, so that weights never lose their vocabulary
    metadata.json, common.pt, .metadata, __*_*.distcp
                     Megatron-Core's `torch_dist` format: weights under upstream's key names,
                     optimizer state (`fully_reshardable`), random states

It is written as `checkpoints/.writing_step_N/` and renamed: a folder called `step_N` is complete.
Counters and cursor are the same on all ranks, random states are kept for each. A run goes on in the
layout in which it was stopped; the weights alone load in any layout (`load_weights`).

Size: fp32 training keeps 12 bytes a parameter (weight and two moments), bf16 14 (a bf16 weight, an
fp32 weight and two moments); a 1.4M-parameter model in fp32 comes to 17 MB.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.validation import StrictHandling

from data_tools.atomic_files import sync_folder, write_atomically
from data_tools.errors import DataError
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.seed import random_state, restore_random_state
from megatron_ext.training.optimizer import fill_states, load_optimizer_state
from megatron_ext.training.parts import Parts
from megatron_ext.training.state import TrainState

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_checkpoint(folder: Path, parts: Parts, state: TrainState) -> Path:
    """Writes `folder/step_N` for the step of `state`.

    All ranks must call this.

    Args:
        folder: The stage's `checkpoints` folder.
        parts: What is trained.
        state: How far it has come.

    Returns:
        The finished checkpoint.
    """
    final = folder / f"step_{state.step}"
    writing = folder / f".writing_step_{state.step}"
    is_main = dist.get_rank() == 0
    if is_main:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
    dist.barrier()
    _keep_writing_in_this_process()
    dist_checkpointing.save(_sharded_state(parts, is_loading=False), str(writing), async_strategy="mcore")
    if is_main:
        _write_facts(writing, parts, state)
        sync_folder(writing)
        writing.rename(final)
        sync_folder(folder)
    dist.barrier()
    return final


@torch.no_grad()
def load_checkpoint(path: Path, parts: Parts) -> TrainState:
    """Restores weights, optimizer, data cursor, random states and counters.

    All ranks must call this.

    Args:
        path: A `step_N` folder of the same stage in the same layout (`layout_of`).
        parts: Freshly built; everything in it is overwritten.

    Returns:
        The counters at which the checkpoint was written.
    """
    facts = read_facts(path)
    fill_states(parts.optimizer)
    wanted = _sharded_state(parts, is_loading=True)
    loaded = dist_checkpointing.load(wanted, str(path), strict=StrictHandling.RAISE_ALL)
    parts.model.module.load_state_dict(loaded["model"])
    load_optimizer_state(parts.optimizer, loaded["optimizer"])
    parts.cursor.load_state_dict(facts["cursor"])
    restore_random_state(loaded["random_state"])
    return TrainState(**facts["state"])


@torch.no_grad()
def load_weights(path: Path, model: Any) -> None:
    """Loads the weights of a checkpoint, and nothing else, in any layout.

    All ranks must call this.

    Args:
        path: A `step_N` folder.
        model: A model of the same shapes, not wrapped.
    """
    wanted = {"model": model.sharded_state_dict(metadata={"dp_cp_group": dist.group.WORLD})}
    loaded = dist_checkpointing.load(wanted, str(path), strict=StrictHandling.RAISE_UNEXPECTED)
    model.load_state_dict(loaded["model"])


def read_plan(path: Path) -> StagePlan:
    """Reads the plan that wrote a checkpoint.

    Raises:
        DataError: `path` is not a checkpoint of this project.
    """
    file = path / "plan.json"
    if not file.is_file():
        raise DataError(f"{path}: not a checkpoint: it has no plan.json. Name a folder …/checkpoints/step_N.")
    return StagePlan.model_validate_json(file.read_bytes())


def read_facts(path: Path) -> dict[str, Any]:
    """Reads `state.json`: counters (`state`), `cursor` and `layout`.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        facts: dict[str, Any] = json.loads((path / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}/state.json: cannot be read ({error}). Remove {path} and run again.") from None
    return facts


def checkpoints_of(folder: Path) -> list[Path]:
    """Lists the complete checkpoints in a `checkpoints` folder, oldest first."""
    if not folder.is_dir():
        return []
    numbered = {
        int(match[1]): child for child in folder.iterdir() if (match := re.fullmatch(r"step_(\d+)", child.name))
    }
    return [numbered[step] for step in sorted(numbered)]


def remove_old_checkpoints(folder: Path, *, keep_last: int, keep_every_steps: int | None) -> None:
    """Deletes all but the newest `keep_last` checkpoints and those at multiples of `keep_every_steps`.

    Only the main rank may call this.
    """
    for path in checkpoints_of(folder)[:-keep_last]:
        step = int(path.name.removeprefix("step_"))
        if keep_every_steps is None or step % keep_every_steps:
            shutil.rmtree(path)


def remove_unfinished(folder: Path) -> None:
    """Deletes what a killed run was writing. Only the main rank may call this."""
    for path in folder.glob(".writing_step_*"):
        shutil.rmtree(path)


def _sharded_state(parts: Parts, *, is_loading: bool) -> dict[str, Any]:
    metadata = {"dp_cp_group": parts.groups.dp_cp, "distrib_optim_sharding_type": "fully_reshardable"}
    model = parts.model.module.sharded_state_dict(metadata=metadata)
    ranks = (parts.groups.pp, parts.groups.tp, parts.groups.dp)
    return {
        "model": model,
        "optimizer": parts.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata),
        "random_state": ShardedObject(
            "random_state", random_state(), tuple(g.size() for g in ranks), tuple(g.rank() for g in ranks), replica_id=0
        ),
    }


def _keep_writing_in_this_process() -> None:
    """Gives core's writer a plain queue for its results.

    It would start a manager process on every rank, which imports torch again (573 MB measured) and lives
    on for ever when its parent is killed. We save synchronously: writer and reader are this process.
    """
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.Queue()


def _write_facts(folder: Path, parts: Parts, state: TrainState) -> None:
    facts = {"state": state.to_json(), "cursor": parts.cursor.state_dict(), "layout": layout_of(parts.plan)}
    write_atomically(folder / "state.json", json.dumps(facts, indent=1).encode())
    write_atomically(folder / "plan.json", parts.plan.model_dump_json(indent=1).encode())
    (folder / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        write_atomically(folder / "tokenizer" / name, (Path(parts.plan.data.tokenizer) / name).read_bytes())


def layout_of(plan: StagePlan) -> dict[str, int | bool]:
    """What must be equal for a checkpoint to be resumed exactly."""
    keys = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size")
    return {key: getattr(plan.layout, key) for key in (*keys, "use_distributed_optimizer")}
