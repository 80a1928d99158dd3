"""Megatron-Core's view of a plan's model."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.activations import squared_relu as fused_squared_relu
from megatron.core.transformer import TransformerConfig

from megatron_ext.models.activation import squared_relu
from megatron_ext.models.backends import BackendName
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.fp8_schema import Fp8Recipe
from megatron_ext.runtime.device import has_gpu
from megatron_ext.runtime.extensions import has_exact_cross_entropy


def transformer_config(plan: StagePlan, backend: BackendName = "local") -> TransformerConfig:
    """Makes the config of a backend.

    Core's initialisation is off: `initialise_parameters` fills every parameter. The loss is a sum over
    tokens that the schedule divides by their number (`calculate_per_token_loss`); core's default averages
    per microbatch, which is biased as soon as loss masks differ.

    Args:
        plan: Model, layout and precision.
        backend: Whose layers it is for.

    Returns:
        A config for `HybridModel` with the backend's stack spec.
    """
    model, layout, execution = plan.model, plan.layout, plan.execution
    is_full = execution.recompute == "full"
    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    return TransformerConfig(
        num_layers=len(layout.hybrid_layer_pattern.replace("|", "")),
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size or None,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        mamba_num_heads=model.mamba_num_heads or None,
        mamba_head_dim=model.mamba_head_dim,
        mamba_state_dim=model.mamba_state_dim,
        mamba_num_groups=model.mamba_num_groups,
        is_hybrid_model=True,
        normalization="RMSNorm",
        layernorm_epsilon=model.layernorm_epsilon,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model.init_method_std,
        perform_initialization=False,
        use_cpu_initialization=not has_gpu(),
        bf16=plan.precision == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        context_parallel_size=layout.context_parallel_size,
        recompute_granularity=None if execution.recompute == "none" else execution.recompute,
        recompute_method="uniform" if is_full else None,
        recompute_num_layers=execution.recompute_num_layers if is_full else None,
        recompute_modules=list(execution.recompute_modules),
        deterministic_mode=execution.deterministic,
        calculate_per_token_loss=True,
        deallocate_pipeline_outputs=True,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        persist_layer_norm=False,
        **(_te_fields(plan) if backend == "te" else _LOCAL_FIELDS),
    )


_LOCAL_FIELDS: dict[str, Any] = {
    "cross_entropy_loss_fusion": False,
    "transformer_impl": "local",
    "activation_func": squared_relu,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "gradient_accumulation_fusion": False,
}
"""No fused kernels: they are extensions, or go through torch.compile."""


def _te_fields(plan: StagePlan) -> dict[str, Any]:
    """What differs with Transformer Engine: fusions as Megatron-LM's `pretrain_hybrid.py` has them, and the loss.

    Source: core 0.19, `training/arguments.py`. Weight gradients are added to fp32 buffers inside the matrix product
    only with apex's extension, without which core's embedding and output layers refuse the option. Megatron-LM refuses
    Transformer Engine's cross entropy; here it is taken where its gradients are exact, else core's own.
    """
    return {
        "transformer_impl": "transformer_engine",
        "use_mamba_mem_eff_path": True,  # the only path of core's that takes packed rows
        "activation_func": fused_squared_relu,
        "bias_dropout_fusion": True,
        "cross_entropy_loss_fusion": has_gpu() and has_exact_cross_entropy(),  # a Triton kernel
        "cross_entropy_fusion_impl": "te",
        "apply_rope_fusion": plan.model.position_embedding_type == "rope",
        "gradient_accumulation_fusion": importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
        "tp_comm_overlap": plan.layout.tp_comm_overlap,
        "cuda_graph_impl": "local" if plan.has_layer_graphs else "none",
    } | _fp8_fields(plan.fp8)


def _fp8_fields(fp8: Fp8Recipe | None) -> dict[str, Any]:
    """In fp8 are the products of the linear layers between embedding and output layer; attention is not.

    `HybridStack` enters Transformer Engine's fp8 context around every layer that is not at an edge (core 0.19,
    `hybrid_block.py`); weights stay bf16 (`fp8_param` off) and are cast once a step.
    """
    if fp8 is None:
        return {}
    edges = fp8.bf16_edge_layers
    return {
        "fp8": fp8.format,
        "fp8_recipe": fp8.recipe,
        "first_last_layers_bf16": edges > 0,
        "num_layers_at_start_in_bf16": edges,
        "num_layers_at_end_in_bf16": edges,
    }


@contextlib.contextmanager
def without_fp8(config: TransformerConfig) -> Iterator[None]:
    """Lets the layers of a built model multiply in its precision, as their stack asks its config in every pass."""
    kept, config.fp8 = config.fp8, None
    try:
        yield
    finally:
        config.fp8 = kept
