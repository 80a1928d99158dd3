"""Megatron-Core's process groups in this process alone, and models in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups


@contextlib.contextmanager
def one_process() -> Iterator[ProcessGroupCollection]:
    """Groups of one rank, one thread, inside the device scope."""
    torch.set_num_threads(1)
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as groups:
        yield groups


def logits_of(model: HybridModel, tokens: Tensor) -> Tensor:
    """Logits [b, s, vocabulary] of tokens [b, s], without caches or gradients."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        return model(tokens, positions, None)


def strengthen(model: HybridModel, factor: float = 8.0) -> HybridModel:
    """Multiplies all matrices: fresh weights of std 0.02 give logits so flat that errors would hide."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(factor)
    return model


def random_tokens(rows: int, length: int, *, seed: int = 0, vocab_size: int = 120) -> Tensor:
    """Uniform token ids, [rows, length]."""
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))
