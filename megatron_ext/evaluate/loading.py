"""A checkpoint of a stage, finished or running, opened to be evaluated: on one rank, or on those of torchrun.

The model stands as the training loop's validation has it: in the precision that it was trained in, in evaluation
mode. Tensor-parallel ranks hold it together; each data-parallel rank has it whole and takes a share of the items.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module

from data_tools.errors import UsageError
from megatron_ext.evaluate.results import CheckpointIdentity, EngineFacts
from megatron_ext.models.backends import backend_of_all_ranks
from megatron_ext.models.build import build_model
from megatron_ext.plan.layouts import legal_tensor_parallel_sizes
from megatron_ext.plan.placement import placed
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.device import describe_gpus
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.checkpoint import damage_seen_by_all_ranks, load_weights
from megatron_ext.training.checkpoint_facts import read_facts
from megatron_ext.training.file_list import STAGE_FILE, read_plan, require_whole, weights_fingerprint

_VERSIONS_OF = ("megatron-ext", "megatron-core", "torch")


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A model to be evaluated, on this rank.

    Attributes:
        path: The `step_N` folder.
        plan: That wrote it, placed on the ranks that are here.
        groups: Process groups: `tp` ranks hold the model together, `dp` ranks share the items.
        model: Loaded, in evaluation mode; in `Float16Module` where it was trained in bf16.
        identity: Which weights these are.
        engine: What computes.
    """

    path: Path
    plan: StagePlan
    groups: ProcessGroupCollection
    model: Any
    identity: CheckpointIdentity
    engine: EngineFacts

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer that the checkpoint carries, with its chat template where it was taught one."""
        return self.path / "tokenizer"


@contextlib.contextmanager
def opened_checkpoint(
    path: Path,
    launch: Launch,
    *,
    tensor_model_parallel_size: int = 1,
    backend: Literal["auto", "local", "te"] = "auto",
) -> Iterator[OpenedCheckpoint]:
    """Joins the ranks, builds the model, loads its weights.

    All ranks must call this.

    Args:
        path: A `step_N` folder; it is verified byte for byte.
        launch: This process among the others.
        tensor_model_parallel_size: Ranks that share one layer; must divide their number.
        backend: Whose layers.

    Raises:
        DataError: The checkpoint is damaged or half written.
        UsageError: The ranks cannot be divided so.
        SetupError: The layers that were asked for cannot run here.
    """
    written = read_plan(path)
    _refuse_split(tensor_model_parallel_size, launch.world_size, written)
    plan = placed(
        written,
        world_size=launch.world_size,
        tensor_model_parallel_size=tensor_model_parallel_size,
        backend=backend,
    )
    with process_groups(launch, tensor_model_parallel_size=tensor_model_parallel_size) as groups:
        require_whole(path, look=damage_seen_by_all_ranks)
        name = backend_of_all_ranks(plan)
        model: Any = build_model(plan, groups, backend=name)
        load_weights(path, model, groups)
        if plan.precision == "bf16":
            model = Float16Module(model.config, model)
        model.eval()
        yield OpenedCheckpoint(path, plan, groups, model, identity_of(path), _engine_facts(plan, name))


def _refuse_split(size: int, world_size: int, plan: StagePlan) -> None:
    legal = legal_tensor_parallel_sizes(plan.model)
    if size not in legal:
        raise UsageError(
            f"--tensor-model-parallel-size {size}: {plan.model.name} cannot be split so; legal: "
            f"{', '.join(map(str, legal))}."
        )
    if world_size % size:
        raise UsageError(
            f"--tensor-model-parallel-size {size}: does not divide the {world_size} processes; start a multiple of it: "
            f"torchrun --nproc-per-node {size} -m megatron_ext evaluate …"
        )


def identity_of(path: Path) -> CheckpointIdentity:
    """Which weights a checkpoint holds; reads its small files only.

    Args:
        path: A whole `step_N` folder.
    """
    plan, state = read_plan(path), read_facts(path)["state"]
    return CheckpointIdentity(
        path=str(path),
        stage_id=plan.stage_id,
        stage=plan.stage,
        recipe=plan.recipe,
        step=state["step"],
        is_finished=_is_end_of_stage(path),
        fingerprint=weights_fingerprint(path),
        model=plan.model.name,
        parameters=plan.model_size.total_parameters,
        tokenizer_fingerprint=plan.data.tokenizer_fingerprint,
        consumed_tokens=state["consumed_tokens"],
        trained_tokens=state["trained_tokens"],
        sampled_tokens=state.get("sampled_tokens", 0),
        parents=tuple(stage.stage_id for stage in plan.behind.chain) if plan.behind is not None else (),
    )


def _is_end_of_stage(path: Path) -> bool:
    file = path.parents[1] / STAGE_FILE
    return file.is_file() and json.loads(file.read_bytes()).get("checkpoint") == f"checkpoints/{path.name}"


def _engine_facts(plan: StagePlan, backend: str) -> EngineFacts:
    return EngineFacts(
        name="megatron_ext",
        backend=backend,
        dtype="bfloat16" if plan.precision == "bf16" else "float32",
        device=next(iter(describe_gpus()), "cpu"),
        world_size=plan.layout.world_size,
        tensor_model_parallel_size=plan.layout.tensor_model_parallel_size,
        versions={name: found for name in _VERSIONS_OF if (found := _version(name))} | {"torch": torch.__version__},
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
