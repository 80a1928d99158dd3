"""Weights of a `torch_dist` checkpoint, a tensor at a time, without a model, a GPU or process groups.

The format is torch's own (`torch.distributed.checkpoint`): `.metadata` says which part of which whole tensor lies
where in which `.distcp` file, whatever the layout was that wrote it. Megatron-Core adds `metadata.json`. Layers are
tensors of their own there, none is stacked (looked at with checkpoints of core 0.19, TP 2 and PP 2).
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from data_tools.errors import DataError
from megatron_ext.convert.metadata_file import read_metadata_file
from megatron_ext.convert.safetensors_files import TensorFacts

_COMMON_STATE = "common_state/shard_0_1"
"""What is no tensor; core 0.19 loads no checkpoint without it (`serialization.py`)."""

_NOT_WEIGHTS = re.compile(r"(chained_\d+\.)?optimizer\.|rng_state|random_state|rerun_state")
_SEPARATE_NORMS = (
    (re.compile(r"(layers\.\d+\.)norm\."), r"\1mixer.in_proj.layer_norm_"),
    (re.compile(r"(layers\.\d+\.)input_layernorm\."), r"\1self_attention.linear_qkv.layer_norm_"),
    (re.compile(r"(layers\.\d+\.)pre_mlp_layernorm\."), r"\1mlp.linear_fc1.layer_norm_"),
    (re.compile(r"decoder\.final_layernorm\."), "decoder.final_norm."),
)
"""Specs that keep a norm apart from the projection behind it write it under its own name; Transformer Engine's, and
those of this project, write it as the projection's `layer_norm_weight`."""


class _Reader(dcp.FileSystemReader):
    """Reads `.metadata` once, and runs nothing that it asks for: torch's own reader would.

    It is asked for at every tensor, and has millions of entries for a large run.
    """

    _metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = read_metadata_file(Path(self.path) / ".metadata")
            self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


class TorchDistWeights:
    """The weights of a checkpoint under the names of `mapping.py`.

    Args:
        folder: Holds `.metadata`.

    Raises:
        DataError: It is no `torch_dist` checkpoint, or a damaged one, or has one weight under two names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / ".metadata").is_file():
            raise DataError(f"{folder}: no torch_dist checkpoint: it has no .metadata.")
        self._reader = _Reader(folder)
        found = self._reader.read_metadata().state_dict_metadata
        self._stored: dict[str, str] = {}
        self.tensors: dict[str, TensorFacts] = {}
        for key, facts in found.items():
            if isinstance(facts, TensorStorageMetadata) and not _NOT_WEIGHTS.match(key):
                self._add(key, TensorFacts(tuple(facts.size), facts.properties.dtype))

    @property
    def num_float32(self) -> int:
        """Tensors that are stored in another precision than bfloat16."""
        return sum(facts.dtype != torch.bfloat16 for facts in self.tensors.values())

    def _add(self, key: str, facts: TensorFacts) -> None:
        name = key
        for pattern, fused in _SEPARATE_NORMS:
            name = pattern.sub(fused, name)
        if name in self._stored:
            raise DataError(f"{self.folder}: {key} and {self._stored[name]} are the same weight, and both are there.")
        self._stored[name], self.tensors[name] = key, facts

    def read(self, name: str) -> Tensor:
        """A whole tensor on the CPU, as it is stored.

        Raises:
            DataError: Its bytes are not there.
        """
        facts = self.tensors[name]
        state = {self._stored[name]: torch.empty(facts.shape, dtype=facts.dtype)}
        try:
            with warnings.catch_warnings(action="ignore"):  # that there are no process groups
                dcp.load(state, storage_reader=self._reader, planner=_plain(dcp.DefaultLoadPlanner), no_dist=True)
        except (CheckpointException, OSError) as error:
            cause = str(error).strip().splitlines()[-1]
            raise DataError(
                f"{self.folder}: {self._stored[name]} cannot be read ({cause}): a .distcp file is missing or damaged."
            ) from None
        return state[self._stored[name]]


def write_torch_dist(folder: Path, tensors: Mapping[str, TensorFacts], read: Callable[[str], Tensor]) -> str:
    """Writes a checkpoint of weights alone, a tensor at a time.

    Args:
        folder: An existing one.
        tensors: What there will be.
        read: Gives a tensor; called once for each.

    Returns:
        Sha256 over names and contents, whatever the order of writing was.

    Raises:
        DataError: What `read` raises.
    """
    digests: dict[str, str] = {}

    class _Planner(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            name = write_item.index.fqn
            if name == _COMMON_STATE:
                return super().resolve_data(write_item)
            tensor = read(name).contiguous()
            assert TensorFacts(tuple(tensor.shape), tensor.dtype) == tensors[name], f"{name} is not what was announced"
            digests[name] = hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data).hexdigest()
            return tensor

    shapes = {name: torch.empty(facts.shape, dtype=facts.dtype, device="meta") for name, facts in tensors.items()}
    state = {**shapes, _COMMON_STATE: [{}]}
    with warnings.catch_warnings(action="ignore"):
        # A file a tensor: torch 2.13 keeps all tensors of a file until it is complete. Nothing is copied ahead.
        writer = dcp.FileSystemWriter(folder, single_file_per_rank=False, per_thread_copy_ahead=0)
        try:
            dcp.save(state, storage_writer=writer, planner=_plain(_Planner), no_dist=True)
        except CheckpointException as error:
            raise _what_failed(error) from None
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def _what_failed(error: CheckpointException) -> BaseException:
    """The error for people that torch has wrapped, as it wraps all; itself where it is another."""
    return next((cause for cause, _ in error.failures.values() if isinstance(cause, DataError)), error)


def _plain(planner: Any) -> Any:
    """A planner that leaves names as they are."""
    return planner(flatten_state_dict=False, flatten_sharded_tensors=False)
