"""mamba-ssm's and causal-conv1d's GPU kernels under the contracts of ssd.py and conv.py.

`ssd`, `ssd_step`, `conv` and `conv_step` take the arguments of `ssd_chunked`, `ssd_step_`,
`causal_conv1d_silu` and `causal_conv1d_silu_step`, and run the kernels for half-precision tensors on a GPU
where the packages are importable, else those functions. Float32 stays in torch: the kernels multiply it in
TF32 (10 bits of mantissa), which is not what a recipe means by fp32.

Written against mamba-ssm 2.3.2 and causal-conv1d 1.7.0.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from megatron_ext.models.backends import choose_backend
from megatron_ext.models.conv import causal_conv1d_silu, causal_conv1d_silu_step
from megatron_ext.models.ssd import ssd_chunked, ssd_step_
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.schema import Precision
from megatron_ext.runtime.device import has_gpu

KERNEL_CHUNK_SIZE = 256
"""Of the Triton SSD; Nemotron-H's `chunk_size` (arXiv 2504.03624, Hugging Face config)."""

_HALF = (torch.bfloat16, torch.float16)


def describe_layers(plan: StagePlan) -> str:
    """One line for the log: the backend that the plan gets here, why, and what computes its Mamba-2 layers.

    Raises:
        SetupError: The backend that was asked for cannot run here.
    """
    backend = choose_backend(plan)
    mamba = "" if backend.name == "te" else f"; Mamba-2 layers: {describe_kernels(plan.precision)}"
    fp8 = "" if plan.fp8 is None else f"; products in fp8 ({plan.fp8.recipe}, {plan.fp8.format})"
    return f"backend: {backend.name} ({backend.reason}){mamba}{fp8}"


def describe_kernels(precision: Precision) -> str:
    """Says in a few words what computes the local backend's Mamba-2 layers here."""
    if not has_gpu():
        return "plain torch on the CPU"
    if precision == "fp32":
        return "plain torch on the GPU (the kernels would compute fp32 in TF32)"
    names = {"mamba-ssm's SSD": _ssd_kernel(), "causal-conv1d's convolution": _conv_package()}
    there = [name for name, found in names.items() if found is not None]
    return " and ".join(there) if there else "plain torch on the GPU: neither mamba-ssm nor causal-conv1d is importable"


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd_chunked` on the device of x [b, l, h, p], with the chunk size that suits it."""
    if is_half_on_gpu(x) and _ssd_kernel() is not None:
        return triton_ssd(x, dt, A, B, C, D=D, initial_state=initial_state, seq_idx=seq_idx)
    return ssd_chunked(x, dt, A, B, C, D=D, initial_state=initial_state, seq_idx=seq_idx)


def triton_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    chunk_size: int = KERNEL_CHUNK_SIZE,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd_chunked` through mamba-ssm; the final state is float32, states between chunks are in C's dtype.

    `seq_idx` [b, l] is int32.
    """
    y, state = _ssd_kernel()(
        x,
        dt,
        A,
        B,
        C,
        chunk_size,
        D=D,
        initial_states=initial_state,
        seq_idx=seq_idx,
        dt_softplus=False,
        return_final_states=True,
    )
    return y, state


def ssd_step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """`ssd.ssd_step_` on the device of x [b, h, p]: y; `state` is advanced in place."""
    if is_half_on_gpu(x) and _ssd_kernel() is not None:
        return triton_ssd_step(state, x, dt, A, B, C, D)[0]
    return ssd_step_(state, x, dt, A, B, C, D)


def triton_ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """`ssd.ssd_step` through mamba-ssm, which advances `state` [b, h, p, n] in place.

    The kernel fails without `dt_bias`, and reads a head's shared numbers fastest through strides of 0.
    """
    heads, width, n = state.shape[1:]
    y = _step_kernel()(
        state,
        x,
        dt[..., None].expand(*dt.shape, width),
        A[:, None, None].expand(heads, width, n),
        B,
        C,
        D=D[:, None].expand(heads, width),
        dt_bias=A.new_zeros(heads)[:, None].expand(heads, width),
        dt_softplus=False,
    )
    return y, state


def conv(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor | None = None) -> Tensor:
    """`causal_conv1d_silu` on the device of x [b, l, d]."""
    takes_index = seq_idx is None or x.shape[-1] % 8 == 0  # causal-conv1d reads it channels last only
    if is_half_on_gpu(x) and _conv_package() is not None and takes_index:
        return fused_conv(x, weight, bias, seq_idx)
    return causal_conv1d_silu(x, weight, bias, seq_idx)


def fused_conv(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor | None = None) -> Tensor:
    """`causal_conv1d_silu` through causal-conv1d; [b, l, d] in x's dtype; `seq_idx` [b, l] is int32.

    The kernel reads the layout off the strides, and `contiguous` keeps any strides of a lone token: `clone` does not.
    """
    fresh = torch.contiguous_format
    if x.shape[-1] % 8:
        channels = x.transpose(1, 2).clone(memory_format=fresh)
    else:
        channels = x.clone(memory_format=fresh).transpose(1, 2)  # [b, d, l], channels last: strides divide by 8
    out = _conv_package().causal_conv1d_fn(channels, weight[:, 0], bias, seq_idx=seq_idx, activation="silu")
    return out.transpose(1, 2)


def conv_step(conv_state: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`causal_conv1d_silu_step` on the device of x [b, d]."""
    if is_half_on_gpu(x) and _conv_package() is not None:
        return fused_conv_step(conv_state, x, weight, bias)
    return causal_conv1d_silu_step(conv_state, x, weight, bias)


def fused_conv_step(conv_state: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`causal_conv1d_silu_step` through causal-conv1d; x and `conv_state` in one dtype."""
    return _conv_package().causal_conv1d_update(x.contiguous(), conv_state, weight[:, 0], bias, "silu")


def has_gated_norm(x: Tensor) -> bool:
    """Whether `fused_gated_norm` takes x."""
    return is_half_on_gpu(x) and _norm_kernel() is not None


def fused_gated_norm(x: Tensor, z: Tensor, weight: Tensor, *, eps: float, group_size: int) -> Tensor:
    """RMSNorm of x * silu(z) over groups of channels through mamba-ssm, float32 within."""
    y: Tensor = _norm_kernel()(x, weight, None, z=z, eps=eps, group_size=group_size, norm_before_gate=False)
    return y


def is_half_on_gpu(x: Tensor) -> bool:
    """Whether x is in half precision on a GPU, which the kernels are for."""
    return x.dtype in _HALF and x.device.type != "cpu"


@cache
def _import(module: str) -> Any:
    """The module; None where it is not installed or its compiled part does not load."""
    try:
        return importlib.import_module(module)
    except Exception:  # a compiled extension of another torch fails in its own ways; `doctor` says which
        return None


def _ssd_kernel() -> Any:
    return getattr(_import("mamba_ssm.ops.triton.ssd_combined"), "mamba_chunk_scan_combined", None)


def _step_kernel() -> Any:
    return getattr(_import("mamba_ssm.ops.triton.selective_state_update"), "selective_state_update", None)


def _norm_kernel() -> Any:
    return getattr(_import("mamba_ssm.ops.triton.layernorm_gated"), "rmsnorm_fn", None)


def _conv_package() -> Any:
    return _import("causal_conv1d")
