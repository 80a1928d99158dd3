"""Random states: set from one seed, saved and restored for an exact resume.

Data order and initial weights have generators of their own (datasets, models); these states serve
what is random inside the model, such as dropout.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel

from megatron_ext.runtime.device import device_random_state, restore_device_random_state


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy, torch and Megatron-Core's tensor-parallel generators.

    Call it inside a device scope, after the process groups exist.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every generator that `seed_everything` seeds, on this rank."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": device_random_state(),
        "tensor_parallel": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    restore_device_random_state(state["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tensor_parallel"])
