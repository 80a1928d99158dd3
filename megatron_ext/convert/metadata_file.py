"""`.metadata` of a `torch_dist` checkpoint: a pickle, of which nothing runs but what such a file is made of.

A pickle may name any function for the reader to call, and torch's own reader calls it. Here only the classes pass that
torch (2.0 to 2.13) and Megatron-Core write there; the first other name ends the reading before anything is called.
(Source: torch, `distributed/checkpoint/filesystem.py`, `metadata.py`, `planner.py`; core 0.19,
`dist_checkpointing/strategies/torch.py`; names found in checkpoints that both had written.)
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from data_tools.errors import DataError

_PERMITTED = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.planner": {
        *("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties", "MEM_FORMAT_ENCODING"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreSavePlan", "MCoreMetadata"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _PERMITTED.get(module, ()):
            raise DataError(
                f"it asks for {module}.{name}, which no metadata of weights is made of; nothing of it was run. Do not "
                "use this checkpoint unless you know who wrote it."
            )
        return super().find_class(module, name)


def read_metadata_file(file: Path) -> Metadata:
    """What lies where in a checkpoint.

    Raises:
        DataError: The file is damaged, or asks for something else than metadata is made of.
    """
    try:
        with file.open("rb") as stream:
            found = _Unpickler(stream).load()
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise DataError(f"{file}: damaged ({type(error).__name__}: {error}); take a whole checkpoint.") from None
    if not isinstance(found, Metadata):
        raise DataError(f"{file}: damaged (it holds no metadata of a checkpoint); take a whole checkpoint.")
    return found
