"""Stand-ins for Transformer Engine and mamba-ssm, so that core's stock hybrid spec builds and runs on a CPU.

    install()                                  before anything of Megatron-Core is imported

They have the names, arguments, parameters and extra states of the third parties' modules as far as the
stock spec uses them, and compute in plain torch, on one rank or on several over gloo. What they prove is ours: the
config mapping, names, shapes, initial weights, checkpoint keys, and with attention_on_cpu.py what each rank is given.
What they cannot prove is the third parties' own arithmetic: tests/gpu does that.

Source: transformer_engine 2.x (`pytorch/module/{linear,layernorm_linear,rmsnorm}.py`), mamba-ssm 2.3.2
(`ops/triton/ssd_combined.py`, `layernorm_gated.py`), causal-conv1d 1.7.0.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.attention_on_cpu import DotProductAttention, thd_get_partitioned_indices


class _WithExtraState(nn.Module):
    """Transformer Engine's modules all save an extra state: empty without fp8."""

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        assert state.numel() == 0


def _parameter(*shape: int, params_dtype: torch.dtype, device: Any) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape, dtype=params_dtype, device=device))


def _mark_split(parameter: nn.Parameter, parallel_mode: str | None) -> None:
    """Transformer Engine marks every weight of a parallel mode, also where one rank has it all."""
    if parallel_mode is not None:
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
        parameter.partition_dim = 1 if parallel_mode == "row" else 0  # type: ignore[attr-defined]
        parameter.partition_stride = 1  # type: ignore[attr-defined]


class Linear(_WithExtraState):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Any = None,
        init_method: Any = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype = torch.float32,
        parallel_mode: str | None = None,
        device: Any = "cuda",
        rng_tracker_name: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        assert not bias
        assert not return_bias
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.parallel_mode = parallel_mode
        self.tp_group = tp_group if tp_size > 1 else None
        self.sequence_parallel = sequence_parallel
        rows = out_features // tp_size if parallel_mode == "column" else out_features
        columns = in_features // tp_size if parallel_mode == "row" else in_features
        self.weight = _parameter(rows, columns, params_dtype=params_dtype, device=device)
        _mark_split(self.weight, parallel_mode)

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        """Of the input of all ranks, whose gradient is summed; or summed over ranks that have a part of the input."""
        from megatron.core.tensor_parallel import mappings

        group = self.tp_group
        if group is None:
            return F.linear(x, self.weight)
        if self.parallel_mode == "column":
            if self.sequence_parallel:
                x = mappings.gather_from_sequence_parallel_region(x, group=group)
            else:
                x = mappings.copy_to_tensor_model_parallel_region(x, group=group)
            return F.linear(x, self.weight)
        out = F.linear(x, self.weight)
        if self.sequence_parallel:
            return mappings.reduce_scatter_to_sequence_parallel_region(out, group=group)
        return mappings.reduce_from_tensor_model_parallel_region(out, group=group)


class LayerNormLinear(Linear):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float,
        normalization: str = "LayerNorm",
        return_layernorm_output: bool = False,
        zero_centered_gamma: bool = False,
        **linear: Any,
    ) -> None:
        super().__init__(in_features, out_features, **linear)
        assert normalization == "RMSNorm"
        assert not zero_centered_gamma
        self.eps = eps
        self.layer_norm_weight = nn.Parameter(torch.zeros_like(self.weight[0]))
        self.layer_norm_weight.sequence_parallel = linear["sequence_parallel"]  # type: ignore[attr-defined]

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor:
        return self._product(F.rms_norm(x, x.shape[-1:], self.layer_norm_weight, self.eps))


class RMSNorm(_WithExtraState):
    def __init__(
        self,
        normalized_shape: int,
        eps: float,
        sequence_parallel: bool,
        zero_centered_gamma: bool,
        params_dtype: torch.dtype,
        device: Any,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _parameter(normalized_shape, params_dtype=params_dtype, device=device)
        self.weight.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """mamba-ssm's RMSNorm: by group, of x * silu(z) where a gate comes with it."""

    def __init__(
        self, hidden_size: int, eps: float, group_size: int, norm_before_gate: bool, device: Any, dtype: torch.dtype
    ) -> None:
        super().__init__()
        assert not norm_before_gate
        self.eps, self.group_size = eps, group_size
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        x = x if z is None else x * F.silu(z)
        return F.rms_norm(x.unflatten(-1, (-1, self.group_size)), (self.group_size,), eps=self.eps).flatten(
            -2
        ) * self.weight.to(x.dtype)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Any:
    """Token by token, from an empty state where seq_idx changes; the gate z multiplies the output by silu(z)."""
    assert cu_seqlens is None
    goes_on = (
        torch.ones(x.shape[:2]) if seq_idx is None else torch.cat([torch.ones(x.shape[0], 1), seq_idx.diff() == 0], 1)
    )
    dt = dt.float() if dt_bias is None else dt.float() + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    b, length, h, p = x.shape
    Bs, Cs = (t.float().repeat_interleave(h // B.shape[2], dim=2) for t in (B, C))
    state = torch.zeros(b, h, p, B.shape[3]) if initial_states is None else initial_states.float()
    ys = []
    for t in range(length):
        state = state * ((dt[:, t] * A).exp() * goes_on[:, t, None])[..., None, None]
        state = state + (dt[:, t, :, None] * x[:, t].float())[..., None] * Bs[:, t, :, None]
        ys.append((state * Cs[:, t, :, None]).sum(-1) + (0.0 if D is None else D[:, None] * x[:, t]))
    y = torch.stack(ys, 1)
    y = (y if z is None else y * F.silu(z)).to(x.dtype)
    return (y, state) if return_final_states else y


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    seq_idx: Tensor | None = None,
    activation: str = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """Convolution, scan and gate over [b, l, in_proj], to [b, l, d]."""
    inner = D.shape[0] * headdim
    z, xBC, dt = torch.split(zxbcdt, [inner, conv1d_weight.shape[0], D.shape[0]], dim=-1)
    xBC = causal_conv1d_fn(xBC.transpose(1, 2), conv1d_weight, conv1d_bias, seq_idx=seq_idx, activation=activation)
    xBC = xBC.transpose(1, 2)
    shared = (conv1d_weight.shape[0] - inner) // 2
    x, B, C = torch.split(xBC, [inner, shared, shared], dim=-1)
    x, z = (t.unflatten(-1, (-1, headdim)) for t in (x, z))
    B, C = (t.unflatten(-1, (ngroups, -1)) for t in (B, C))
    y = mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=D, z=z, dt_bias=dt_bias, dt_softplus=True, seq_idx=seq_idx
    )
    return y.flatten(2)


def causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Any = None, activation: str | None = None
) -> Tensor:
    """[b, d, l], weight [d, w]; a token sees those before it that have its seq_idx `[b, l]`."""
    assert activation == "silu"
    width, length = weight.shape[1], x.shape[2]
    index = torch.zeros(x.shape[0], length) if seq_idx is None else seq_idx
    padded, of_padded = F.pad(x, (width - 1, 0)), F.pad(index, (width - 1, 0), value=-1)
    taps = [
        padded[:, :, tap : tap + length]
        * (of_padded[:, None, tap : tap + length] == index[:, None])
        * weight[:, tap, None]
        for tap in range(width)
    ]
    total = sum(taps[1:], taps[0])
    return F.silu(total if bias is None else total + bias[:, None])


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """One token: x [b, d], conv_state [b, d, w] shifted in place, weight [d, w]."""
    assert (x.dtype, activation) == (conv_state.dtype, "silu")
    assert x.is_contiguous()
    conv_state.copy_(torch.cat([conv_state[..., 1:], x[..., None]], -1))
    return F.silu((conv_state * weight).sum(-1) + bias)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor,
    dt_softplus: bool = False,
) -> Tensor:
    """One token, with the shapes that the kernel asserts; D and dt_bias are needed, as in 2.3.2."""
    b, heads, width, n = state.shape
    assert x.shape == dt.shape == (b, heads, width)
    assert A.shape == (heads, width, n)
    assert B.shape == C.shape == (b, B.shape[1], n)
    assert D.shape == dt_bias.shape == (heads, width)
    assert z is None
    assert not dt_softplus
    Bs, Cs = (t.float().repeat_interleave(heads // t.shape[1], dim=1)[:, :, None] for t in (B, C))
    dt = dt.float() + dt_bias
    state.mul_((dt[..., None] * A).exp()).add_((dt * x)[..., None] * Bs)
    return ((state * Cs).sum(-1) + D * x).to(x.dtype)


def install() -> None:
    """Puts the stand-ins into `sys.modules`."""
    _module("transformer_engine", __version__="2.1.0")
    _module("transformer_engine_torch", thd_get_partitioned_indices=thd_get_partitioned_indices)
    _module("transformer_engine.common")
    _module("transformer_engine.common.recipe", DelayedScaling=object, Format=object)
    layers = (Linear, LayerNormLinear, RMSNorm, DotProductAttention)
    _module(
        "transformer_engine.pytorch",
        **{layer.__name__: layer for layer in layers},
        LayerNorm=object,
        GroupedLinear=type("GroupedLinear", (), {}),
    )
    _module(
        "transformer_engine.pytorch.distributed",
        CudaRNGStatesTracker=object,
        activation_recompute_forward=None,
        is_fp8_activation_recompute_enabled=None,
    )
    _module("transformer_engine.pytorch.tensor", QuantizedTensor=type("QuantizedTensor", (), {}))
    _module("transformer_engine.pytorch.tensor.float8_tensor", Float8Tensor=type("Float8Tensor", (), {}))
    _module("transformer_engine.pytorch.fp8", FP8GlobalStateManager=None, fp8_autocast=None, fp8_model_init=None)
    _module("mamba_ssm", __version__="2.3.2")
    _module("mamba_ssm.ops")
    _module("mamba_ssm.ops.triton")
    _module("mamba_ssm.ops.triton.layernorm_gated", RMSNorm=GatedRMSNorm)
    _module(
        "mamba_ssm.ops.triton.ssd_combined",
        mamba_chunk_scan_combined=mamba_chunk_scan_combined,
        mamba_split_conv1d_scan_combined=mamba_split_conv1d_scan_combined,
    )
    _module("mamba_ssm.ops.triton.selective_state_update", selective_state_update=selective_state_update)
    _module(
        "causal_conv1d",
        __version__="1.7.0",
        causal_conv1d_fn=causal_conv1d_fn,
        causal_conv1d_update=causal_conv1d_update,
    )
    _module("causal_conv1d.causal_conv1d_varlen", causal_conv1d_varlen_states=None)


def _module(name: str, **contents: Any) -> Any:
    module: Any = ModuleType(name)
    module.__path__ = []
    module.__spec__ = ModuleSpec(name, loader=None)
    vars(module).update(contents)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module
