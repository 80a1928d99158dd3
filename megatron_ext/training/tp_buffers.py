"""Buffers through which Transformer Engine sends parts of a tensor while it multiplies others (`tp_comm_overlap`).

Core 0.19 only hands `tp_comm_overlap` to the layers; the buffers are made beside it, once a process, of one shape:
the whole sequence of a microbatch. So every pass must have that shape, which `plan/te_options.py` sees to.

Source: core 0.19 `training/initialize.py:_initialize_tp_communicators`; transformer_engine 2.8 or later,
`pytorch/module/base.py:initialize_ub`. **Written from these; no GPU has run it.**
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from data_tools.errors import SetupError
from megatron_ext.plan.stage_plan import StagePlan


@contextlib.contextmanager
def tp_buffers(plan: StagePlan) -> Iterator[None]:
    """Has the buffers while entered, where the plan wants them; before a model is built.

    All ranks must enter and leave it.

    Raises:
        SetupError: Transformer Engine is older, or GPU or driver has no such buffers.
    """
    if not plan.layout.tp_comm_overlap:
        yield
        return
    try:
        from transformer_engine.pytorch.module import UserBufferQuantizationMode, destroy_ub, initialize_ub
    except ImportError as error:
        raise SetupError(f"parallel.tp_comm_overlap: needs transformer-engine 2.8 or later ({error}).") from None
    kinds = [getattr(UserBufferQuantizationMode, name) for name in quantization_modes(plan)]
    try:
        initialize_ub(quantization_modes=kinds, ub_cfgs={}, **buffer_shape(plan))
    except RuntimeError as error:
        raise SetupError(
            f"parallel.tp_comm_overlap: {str(error).splitlines()[0]}\n"
            "  The tensor-parallel ranks must be GPUs of one machine that reach each other's memory; "
            "or set parallel.tp_comm_overlap=false."
        ) from None
    try:
        yield
    finally:
        destroy_ub()


def buffer_shape(plan: StagePlan) -> dict[str, Any]:
    """The tokens of a microbatch times the hidden size, and over how many ranks they are sent.

    Ranks meet through NCCL to exchange addresses: the other ways, gloo and MPI, need more to be installed.
    """
    tokens = plan.batch.micro_batch_size * plan.batch.sequence_length
    return {
        "shape": [tokens, plan.model.hidden_size],
        "tp_size": plan.layout.tensor_model_parallel_size,
        "bootstrap_backend": "nccl",
    }


def quantization_modes(plan: StagePlan) -> list[str]:
    """What passes through the buffers: fp8, bf16, or both where some layers stay in bf16."""
    if plan.fp8 is None:
        return ["NONE"]
    return ["FP8", "NONE"] if plan.fp8.bf16_edge_layers else ["FP8"]
