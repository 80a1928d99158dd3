"""The layer specs of the local backend, for `HybridModel` and for stock `pretrain_hybrid.py --spec`.

    --spec megatron_ext.models.specs local_hybrid_stack_spec

Names of parameters are core's. The stock spec fuses each input norm into the projection after it, so
its checkpoints call the norm `in_proj.layer_norm_weight` and so on; the key maps give ours those names
and a checkpoint of one spec loads into the other.
"""

from __future__ import annotations

from functools import partial

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.hybrid.hybrid_block import HybridStackSubmodules
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
from megatron.core.ssm.mamba_mixer import MambaMixerSubmodules
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_ext.models.attention import CausalSelfAttention, ScaledDotProductAttention
from megatron_ext.models.mixer import LocalMambaMixer
from megatron_ext.models.norm import RMSNorm
from megatron_ext.models.stack import LocalHybridStack

_mamba_layer = ModuleSpec(
    module=MambaLayer,
    submodules=MambaLayerSubmodules(
        norm=RMSNorm,
        mixer=ModuleSpec(
            module=LocalMambaMixer,
            submodules=MambaMixerSubmodules(in_proj=ColumnParallelLinear, out_proj=RowParallelLinear),
        ),
        mamba_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={"norm.": "mixer.in_proj.layer_norm_"},
    ),
)

_attention_layer = ModuleSpec(
    module=TransformerLayer,
    submodules=TransformerLayerSubmodules(
        input_layernorm=RMSNorm,
        self_attention=ModuleSpec(
            module=CausalSelfAttention,
            params={"attn_mask_type": AttnMaskType.causal},
            submodules=SelfAttentionSubmodules(
                linear_qkv=ColumnParallelLinear,
                core_attention=ScaledDotProductAttention,
                linear_proj=RowParallelLinear,
            ),
        ),
        self_attn_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={"input_layernorm.": "self_attention.linear_qkv.layer_norm_"},
    ),
)

_mlp_layer = ModuleSpec(
    module=MLPLayer,
    submodules=TransformerLayerSubmodules(
        pre_mlp_layernorm=RMSNorm,
        mlp=partial(
            MLP.as_mlp_submodule,
            submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
        ),
        mlp_bda=get_bias_dropout_add,
        sharded_state_dict_keys_map={"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"},
    ),
)

local_hybrid_stack_spec = ModuleSpec(
    module=LocalHybridStack,
    submodules=HybridStackSubmodules(mamba_layer=_mamba_layer, attention_layer=_attention_layer, mlp_layer=_mlp_layer),
)
"""Mamba-2, attention and MLP layers that need neither Transformer Engine, mamba-ssm nor a GPU."""
