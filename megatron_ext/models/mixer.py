"""The Mamba-2 mixer of the local backend: core's `MambaMixer` that needs no mamba-ssm.

    zxBCdt = in_proj(hidden)            z gate, x values, B and C projections, dt step sizes
    xBC    = silu(causal_conv(xBC))
    y      = SSD(x, softplus(dt + dt_bias), -exp(A_log), B, C) + D x
    out    = out_proj(RMSNorm(y * silu(z)))

`forward`, `_decode` and `sharded_state_dict` are core's: parameters, checkpoint keys and their
sharding are those of the stock spec (core 0.19, `ssm/mamba_mixer.py`). Replaced are the constructor,
which refuses to run without mamba-ssm, and the computation between the two projections.

Shapes: s tokens, b rows; of this rank: w = heads * head width channels, g groups, n state width, h heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.ssm.mamba_context_parallel import MambaContextParallel
from megatron.core.ssm.mamba_mixer import MambaMixer, MambaMixerSubmodules
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor, nn

from megatron_ext.models import kernels
from megatron_ext.models.conv import tap_major
from megatron_ext.models.initialise import draw_full, local_part
from megatron_ext.models.limits import (
    UnsupportedError,
    refuse_context_parallel,
    refuse_dynamic_batching,
    refuse_packed_decoding,
    refuse_unlike_row,
)
from megatron_ext.models.norm import GatedRMSNorm, wide
from megatron_ext.runtime.device import device

CONV_WIDTH = 4
"""Taps of the convolution; core and Mamba-2 have no other."""


class DecodeWeights(NamedTuple):
    """What a token needs of a layer's weights, some of them prepared once for many tokens."""

    in_proj: Tensor
    conv: Tensor  # [channels, 1, 4]
    conv_bias: Tensor
    dt_bias: Tensor  # float32
    A: Tensor  # [h] float32
    D: Tensor
    out_proj: Tensor


class LocalMambaMixer(MambaMixer):
    """Mamba-2 in plain torch, or through the kernels of models/kernels.py where they can run.

    Args:
        config: Sizes, dtypes and initialisation.
        submodules: `in_proj` (column parallel) and `out_proj` (row parallel).
        d_model: Hidden size.
        layer_number: From 1, over all pipeline stages.
        pg_collection: Process groups; `tp` and `cp` are used.
        pp_layer_offset: Layers of earlier pipeline stages.
        name: Name of the module, passed down by core.

    Raises:
        UnsupportedError: When a sequence is split over ranks.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MambaMixerSubmodules,
        d_model: int,
        *,
        layer_number: int,
        pg_collection: ProcessGroupCollection,
        pp_layer_offset: int = 0,
        name: str | None = None,
    ) -> None:
        MegatronModule.__init__(self, config)  # not MambaMixer's: it raises ImportError without mamba-ssm
        refuse_context_parallel(pg_collection.cp.size())
        self.d_model, self.d_conv = d_model, CONV_WIDTH
        self.layer_number, self.pp_layer_offset = layer_number, pp_layer_offset
        self.pg_collection, self.tp_group = pg_collection, pg_collection.tp
        self.use_mem_eff_path = True  # core's name for "train through _ssm_training"
        self._set_sizes()
        self._build_projections(submodules, name)
        self._build_parameters()
        self.norm = GatedRMSNorm(
            config,
            self.d_inner_local_tp,
            group_size=self.d_inner_local_tp // self.ngroups_local_tp,
            pg_collection=pg_collection,
        )
        _mark_sharded(self.norm.weight)
        self.cp = MambaContextParallel(
            cp_group=pg_collection.cp,
            d_inner_local_tp=self.d_inner_local_tp,
            nheads_local_tp=self.nheads_local_tp,
            ngroups_local_tp=self.ngroups_local_tp,
            d_state=self.d_state,
            conv1d_weight_cp1=self.conv1d_weight,
            conv1d_bias_cp1=self.conv1d_bias,
            conv1d_padding=self.d_conv - 1,
            dt_bias_cp1=self.dt_bias,
            A_log_cp1=self.A_log,
            D_cp1=self.D,
            D_has_hdim=False,
        )

    def _set_sizes(self) -> None:
        config, ranks = self.config, self.tp_group.size()
        self.d_state, self.headdim = config.mamba_state_dim, config.mamba_head_dim
        self.ngroups = config.mamba_num_groups
        self.nheads = config.mamba_num_heads or 2 * self.d_model // self.headdim
        self.d_inner = self.nheads * self.headdim
        sizes = f"mamba_num_heads {self.nheads}, mamba_num_groups {self.ngroups}, tensor parallel {ranks}"
        assert self.nheads % self.ngroups == 0 == self.ngroups % ranks, f"{sizes}: each must divide the one before"
        self.nheads_local_tp, self.ngroups_local_tp = self.nheads // ranks, self.ngroups // ranks
        self.d_inner_local_tp = self.d_inner // ranks
        z, *self._conv_sizes, dt = self._in_proj_sizes
        self._main_sizes = [z, sum(self._conv_sizes), dt]

    def _build_projections(self, submodules: MambaMixerSubmodules, name: str | None) -> None:
        shared: dict[str, Any] = {"config": self.config, "bias": False, "is_expert": False, "tp_group": self.tp_group}
        self.in_proj = build_module(
            submodules.in_proj,
            self.d_model,
            2 * self.d_inner + 2 * self.ngroups * self.d_state + self.nheads,
            init_method=self.config.init_method,
            gather_output=False,
            skip_bias_add=False,
            tp_comm_buffer_name="fc1",
            name=None if name is None else f"{name}.in_proj",
            **shared,
        )
        self.in_proj.weight.partition_sizes = self._in_proj_sizes
        self.out_proj = build_module(
            submodules.out_proj,
            self.d_inner,
            self.d_model,
            init_method=self.config.output_layer_init_method,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_comm_buffer_name="fc2",
            name=None if name is None else f"{name}.out_proj",
            **shared,
        )

    @property
    def _in_proj_sizes(self) -> list[int]:
        """Rows of z, x, B, C and dt on this rank, in the order in which in_proj packs them."""
        shared = self.ngroups_local_tp * self.d_state
        return [self.d_inner_local_tp, self.d_inner_local_tp, shared, shared, self.nheads_local_tp]

    def _build_parameters(self) -> None:
        """Convolution, A_log, D and dt_bias; A_log and D are built float32, as in core (Float16Module: bf16)."""
        dtype, heads = self.config.params_dtype, self.nheads_local_tp
        conv_sizes = self._conv_sizes
        shapes = {
            "conv1d_weight": ((sum(conv_sizes), 1, self.d_conv), dtype),
            "conv1d_bias": ((sum(conv_sizes),), dtype),
            "dt_bias": ((heads,), dtype),
            "A_log": ((heads,), torch.float32),
            "D": ((heads,), torch.float32),
        }
        for name, (shape, kind) in shapes.items():
            parameter = nn.Parameter(torch.empty(shape, dtype=kind, device=device()))
            _mark_sharded(parameter)
            if name.startswith("conv1d"):
                parameter.partition_sizes = conv_sizes  # type: ignore[attr-defined]
            setattr(self, name, parameter)
            if self.config.perform_initialization:
                full = draw_full(f"mixer.{name}", parameter, self.tp_group.size(), config=self.config)
                with torch.no_grad():
                    parameter.copy_(local_part(full, parameter, self.tp_group))

    def forward(
        self, hidden_states: Tensor, inference_context: Any = None, *, packed_seq_params: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Mixes the tokens of every row, [s, b, hidden] to [s, b, hidden] and no bias.

        With `packed_seq_params` the states are those of one document each, if they carry `seq_idx`.

        Raises:
            UnsupportedError: For continuous batching, and packed rows that are decoded from a cache.
        """
        refuse_dynamic_batching(inference_context)
        if inference_context is not None:
            refuse_packed_decoding(packed_seq_params)
        return super().forward(hidden_states, inference_context, packed_seq_params=packed_seq_params, **kwargs)

    def _ssm_training(self, zxBCdt: Tensor, packed_seq_params: Any = None) -> Tensor:
        """[s, b, in_proj] to [s, b, w]; the whole row, also where the sequence is split between the layers."""
        if packed_seq_params is None:
            return self._ssm_prefill(zxBCdt)
        refuse_unlike_row(packed_seq_params, tokens=zxBCdt.shape[0], rows=zxBCdt.shape[1])
        return self._ssm_prefill(zxBCdt, seq_idx=packed_seq_params.seq_idx)

    def _ssm_prefill(
        self,
        zxBCdt: Tensor,
        conv_state: Tensor | None = None,
        ssm_state: Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> Tensor:
        """[s, b, in_proj] to [s, b, w]; fills the states (conv [b, w + 2 g n, 4], SSM [b, h, p, n]) when given.

        `seq_idx` [b, s] numbers the documents of a row; states are zero before the first token of each.
        """
        z, xBC, dt = zxBCdt.split_with_sizes(self._main_sizes, -1)
        tokens, rows = z.shape[:2]
        xBC = xBC.transpose(0, 1)  # [b, s, w + 2 g n]
        if conv_state is not None:
            conv_state.copy_(F.pad(xBC.transpose(1, 2), (self.d_conv - tokens, 0)))
        x, B, C = self._split_conv(kernels.conv(xBC, self.conv1d_weight, self.conv1d_bias, seq_idx=seq_idx))
        y, final_state = kernels.ssd(
            x,
            F.softplus(wide(dt.transpose(0, 1)) + wide(self.dt_bias)),
            -torch.exp(wide(self.A_log)),
            B,
            C,
            D=self.D,
            seq_idx=seq_idx,
        )
        if ssm_state is not None:
            ssm_state.copy_(final_state)
        return self.norm(y.reshape(rows, tokens, -1).transpose(0, 1), z)

    def _ssm_decode(
        self, zxBCdt: Tensor, conv_state: Tensor, ssm_state: Tensor, batch_indices: Tensor | None = None
    ) -> Tensor:
        """One token of every row, [1, b, in_proj] to [1, b, w]; advances both states in place."""
        assert batch_indices is None, "batch_indices belong to dynamic batching"
        assert zxBCdt.shape[0] == 1, "decoding takes one token of every cached row"
        return self._step(zxBCdt[0], conv_state, ssm_state, self.decode_weights())[None]

    def _step(self, zxBCdt: Tensor, conv_state: Tensor, ssm_state: Tensor, weights: DecodeWeights) -> Tensor:
        """One token of every row, [b, in_proj] to [b, w]."""
        z, xBC, dt = zxBCdt.split_with_sizes(self._main_sizes, -1)
        x, B, C = self._split_conv(kernels.conv_step(conv_state, xBC, weights.conv, weights.conv_bias))
        dt = F.softplus(dt.float() + weights.dt_bias)
        y = kernels.ssd_step(ssm_state, x, dt, weights.A, B, C, weights.D)
        return self.norm(y.flatten(1), z)

    def read_prompts(self, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """Whole prompts of one length, [s, b, hidden] to this rank's part of [s, b, hidden]; fills the states.

        Sums over the tensor-parallel ranks are left to the caller, as in `decode`.
        """
        return F.linear(
            self._ssm_prefill(F.linear(hidden, self.in_proj.weight), conv_state, ssm_state), self.out_proj.weight
        )

    def decode(self, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor, weights: DecodeWeights) -> Tensor:
        """The next token of every row, [b, hidden] to this rank's part of [b, hidden]; advances the states in place.

        `weights` are the present ones of `decode_weights`.
        """
        return F.linear(self._step(F.linear(hidden, weights.in_proj), conv_state, ssm_state, weights), weights.out_proj)

    def decode_weights(self) -> DecodeWeights:
        """What `decode` needs of the present weights; to be asked for anew when they have changed."""
        conv = self.conv1d_weight
        return DecodeWeights(
            self.in_proj.weight,
            conv if kernels.is_half_on_gpu(conv) else tap_major(conv),
            self.conv1d_bias,
            self.dt_bias.float(),
            -torch.exp(self.A_log.float()),
            self.D,
            self.out_proj.weight,
        )

    def _split_conv(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [..., h, p], B and C [..., g, n]."""
        x, B, C = xBC.split_with_sizes(self._conv_sizes, -1)
        groups = (self.ngroups_local_tp, self.d_state)
        return x.unflatten(-1, (self.nheads_local_tp, self.headdim)), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def _get_states_from_cache(self, inference_context: Any, batch_size: int, **_: Any) -> tuple[Tensor, Tensor]:
        """The states of this layer in a static context, zero at a prompt's start.

        Core's version starts from zero states whenever the batch size changes, also in the middle of a
        text (logits moved by 2.24), and keeps the SSM state in the parameter dtype; ours is float32.
        """
        cache = inference_context.key_value_memory_dict
        if inference_context.sequence_len_offset == 0:
            conv_shape, ssm_shape = self.mamba_state_shapes_per_request()
            cache[self.layer_number] = (
                self.conv1d_weight.new_zeros(batch_size, *conv_shape),
                self.A_log.new_zeros(batch_size, *ssm_shape, dtype=torch.float32),
            )
        cached = cache[self.layer_number][0].shape[0]
        if cached != batch_size:
            raise UnsupportedError(
                f"batch size: {batch_size} rows to continue, but the cache holds {cached}; "
                "keep all rows until the last one is finished, or start again from the prompts."
            )
        return cache[self.layer_number]


def _mark_sharded(parameter: nn.Parameter) -> None:
    """Says to core that dim 0 is split over tensor-parallel ranks: its gradient is not summed over them."""
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    parameter.partition_dim = 0  # type: ignore[attr-defined]
