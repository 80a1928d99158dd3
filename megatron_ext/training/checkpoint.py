"""Checkpoints: what one holds, and how it is read back, in the layout that wrote it or in another.

A checkpoint is the folder `checkpoints/step_N/`:

    plan.json        the stage plan that wrote it
    state.json       counters, data cursor, layout, number and format of the optimizer's updates
    ledger.json      what has been read, how often (datasets/ledger.py)
    tokenizer/       the tokenizer's files, so that weights never lose their vocabulary
    metadata.json, .metadata, __*_*.distcp
                     Megatron-Core's `torch_dist` format: weights under upstream's key names,
                     optimizer state (optimizer_state.py), random states
    files.json       sizes and hashes of all of these, written last (file_list.py)

It is written as `checkpoints/.writing_step_N/` and renamed (saving.py): a folder called `step_N` was
complete. Counters and cursor are the same on all ranks, random states are kept for each rank. In the
same layout a run goes on bit for bit. In another one, weights, optimizer state, counters and cursor are
the same and sums are taken in another order; random states are seeded anew.

Size: fp32 training keeps 12 bytes a parameter (weight and two moments), bf16 14 (a bf16 weight, an
fp32 weight and two moments), and the distributed optimizer in fp32 16 (it writes its main weights
too); a 1.4M-parameter model in fp32 comes to 17 MB.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import DataError
from megatron_ext.datasets.ledger import read_ledger, sum_anew, sum_by_source
from megatron_ext.models.new_rows import VOCABULARY_WEIGHTS, fill_new_rows
from megatron_ext.models.weights import put_weights, sharded_weights
from megatron_ext.plan.stage_plan import NewTokensPlan
from megatron_ext.runtime.seed import random_state, restore_random_state, seed_everything
from megatron_ext.training.checkpoint_facts import layout_of, read_facts, require_fit
from megatron_ext.training.file_list import damage_of, read_plan
from megatron_ext.training.optimizer_state import ask_as_written, load_optimizer_state
from megatron_ext.training.parts import Parts
from megatron_ext.training.state import TrainState


@torch.no_grad()
def load_checkpoint(path: Path, parts: Parts) -> TrainState:
    """Restores weights, optimizer, data cursor, random states and counters.

    All ranks must call this.

    Args:
        path: A whole `step_N` folder (`file_list.require_whole`) of the same stage, in any layout.
        parts: Freshly built; everything in it is overwritten.

    Returns:
        The counters at which the checkpoint was written.

    Raises:
        RecipeError: The checkpoint is of a stage with another meaning, or of a layout that its format is bound to.
        DataError: Its weights have other shapes.
    """
    require_fit(path, parts.plan, look=damage_seen_by_all_ranks)
    facts = _restore(path, parts)
    parts.cursor.load_state_dict(facts["cursor"])
    return TrainState(**facts["state"])


def continue_from(path: Path, parts: Parts) -> None:
    """Takes up weights, optimizer, data cursors and random states where the parent stage ended.

    All ranks must call this.

    Args:
        path: The parent's last checkpoint (`parent_stage.py`), whole, in any layout.
        parts: Freshly built; everything in it is overwritten.

    Raises:
        DataError: Its weights have other shapes, or its data was read in another way.
    """
    facts = _restore(path, parts)
    ledger = [row.to_json() for row in sum_by_source(read_ledger(path))]
    parts.cursor.take_over(facts["cursor"], ledger=ledger)


@torch.no_grad()
def begin_with_weights(path: Path, parts: Parts) -> None:
    """Takes the weights of another stage, and what it had read for the ledger; everything else stays as built.

    In bf16 the main weights of the optimizer are these weights in fp32: those of the giver are not read.

    All ranks must call this.

    Args:
        path: The giver's last checkpoint (`parent_stage.py`), whole, in any layout and precision.
        parts: Freshly built.

    Raises:
        DataError: Its weights have other names or shapes.
    """
    load_weights(path, parts.model.module, parts.groups, new_tokens=parts.plan.new_tokens)
    parts.optimizer.reload_model_params()
    parts.cursor.begin_anew(ledger=[row.to_json() for row in sum_anew(read_ledger(path), parts.plan)])


def _restore(path: Path, parts: Parts) -> dict[str, Any]:
    """Restores weights, optimizer and random states; returns the facts of `state.json`."""
    facts = read_facts(path)
    updated = facts["optimizer"]
    load_weights(path, parts.model.module, parts.groups)
    model = parts.model.module.sharded_state_dict(metadata=sharding_metadata(parts, updated["format"]))
    wanted = parts.optimizer.sharded_state_dict(
        model, is_loading=True, metadata=sharding_metadata(parts, updated["format"])
    )
    ask_as_written(
        wanted,
        by_distributed=facts["layout"]["use_distributed_optimizer"],
        for_distributed=parts.plan.layout.use_distributed_optimizer,
        precision=parts.plan.precision,
    )
    # Under another name than when saved: core merges what is not a tensor into the saved dictionaries by name.
    loaded = _load({"restored": wanted}, path)
    load_optimizer_state(parts.optimizer, loaded["restored"], updates=updated["updates"], written_as=updated["format"])
    if facts["layout"] == layout_of(parts.plan):
        restore_random_state(_load({"random_state": sharded_random_state(parts)}, path)["random_state"])
    else:
        seed_everything(
            seed_in_another_layout(parts.plan.seed, facts["state"]["step"]), for_graphs=parts.plan.has_layer_graphs
        )
    return facts


def load_weights(
    path: Path, model: Any, groups: ProcessGroupCollection, *, new_tokens: NewTokensPlan | None = None
) -> None:
    """Loads the weights of a checkpoint, and nothing else, in any layout.

    All ranks must call this.

    Args:
        path: A whole `step_N` folder.
        model: A model of the same shapes, not in `DistributedDataParallel`.
        groups: Process groups of the model.
        new_tokens: What the model's vocabulary has more than the checkpoint's; their rows are filled.

    Raises:
        DataError: The checkpoint's weights have other names or shapes.
    """
    metadata = {"dp_cp_group": groups.dp_cp}
    _require_same_shapes(path, model.sharded_state_dict(metadata=metadata), new_tokens)
    put_weights(model, _load({"model": sharded_weights(model, groups)}, path)["model"])
    if new_tokens is not None:
        fill_new_rows(model, new_tokens, groups)


def sharding_metadata(parts: Parts, optimizer_format: str) -> dict[str, Any]:
    """What core's `sharded_state_dict` methods want to know."""
    return {"dp_cp_group": parts.groups.dp_cp, "distrib_optim_sharding_type": optimizer_format}


def sharded_random_state(parts: Parts) -> ShardedObject:
    """This rank's random states, at its place in the layout."""
    ranks = (parts.groups.pp, parts.groups.tp, parts.groups.dp_cp)
    sizes, places = tuple(group.size() for group in ranks), tuple(group.rank() for group in ranks)
    return ShardedObject("random_state", random_state(), sizes, places, replica_id=0)


def seed_in_another_layout(seed: int, step: int) -> int:
    """The seed of the generators that have no saved state: fixed by the stage's seed and the step."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:4]) >> 1


def damage_seen_by_all_ranks(path: Path) -> list[str]:
    """What is damaged in a checkpoint; every rank reads a share of its bytes. All ranks must call this."""
    found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, damage_of(path, rank=dist.get_rank(), world_size=len(found)))
    return sorted({line for lines in found for line in lines})


def _load(wanted: dict[str, Any], path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = dist_checkpointing.load(wanted, str(path), strict=StrictHandling.RAISE_UNEXPECTED)
    return loaded


def _require_same_shapes(path: Path, sharded: dict[str, Any], new_tokens: NewTokensPlan | None) -> None:
    """Compares every weight's name and whole shape; core itself would cut or pad a vocabulary silently."""
    apply_factories(sharded)
    mine = {t.key: tuple(t.global_shape) for t in nested_values(sharded) if isinstance(t, ShardedTensor)}
    of_ranks: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, mine)
    here = {key: shape for of_rank in of_ranks for key, shape in of_rank.items()}
    if new_tokens is not None:
        here |= {key: (new_tokens.known_rows, *here[key][1:]) for key in VOCABULARY_WEIGHTS if key in here}
    saved = dist_checkpointing.load_tensors_metadata(str(path))
    there = {key: tuple(t.global_shape) for key, t in saved.items() if not key.startswith("optimizer.")}
    differing = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    if differing:
        lines = [f"  {key}: there {_shape(there.get(key))}, here {_shape(here.get(key))}\n" for key in differing[:5]]
        more = f"  … and {len(differing) - 5} weights more\n" if len(differing) > 5 else ""
        raise DataError(
            f"{path}: its weights are those of another model; nothing was loaded.\n{''.join(lines)}{more}"
            f"  It was written by {read_plan(path).recipe}. Take that model, or another checkpoint."
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
