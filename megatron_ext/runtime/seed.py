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


def seed_everything(seed: int, *, for_graphs: bool = False) -> None:
    """Seeds Python, numpy, torch and Megatron-Core's tensor-parallel generators.

    Call it inside a device scope, after the process groups exist.

    Args:
        seed: Of all of them.
        for_graphs: Whether CUDA graphs will be captured: core then asks for Transformer Engine's generators, in a
            tracker that is made anew, as an arm's stage before this one may have made core's.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if for_graphs:
        tensor_parallel.model_parallel_cuda_manual_seed(seed, te_rng_tracker=True, force_reset_rng=True)
    else:
        tensor_parallel.model_parallel_cuda_manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every generator that `seed_everything` seeds, on this rank."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": device_random_state(),
        "tensor_parallel": _tracker_states(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    restore_device_random_state(state["device"])
    tracker = tensor_parallel.get_cuda_rng_tracker()
    states = state["tensor_parallel"]
    if tensor_parallel.is_graph_safe_cuda_rng_tracker(tracker):
        states = {name: tensor_parallel.convert_cuda_rng_state(s, to_graphable=True) for name, s in states.items()}
    tracker.set_states(states)


def _tracker_states() -> dict[str, Any]:
    """As bytes, which a checkpoint can hold; generators of CUDA graphs cannot be written."""
    tracker = tensor_parallel.get_cuda_rng_tracker()
    states: dict[str, Any] = tracker.get_states()
    if tensor_parallel.is_graph_safe_cuda_rng_tracker(tracker):
        return {name: tensor_parallel.convert_cuda_rng_state(s, to_graphable=False) for name, s in states.items()}
    return states
