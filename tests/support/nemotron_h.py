"""Our hybrid and transformers' NemotronHForCausalLM with the same shapes and the same weights."""

from __future__ import annotations

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.hybrid.hybrid_model import HybridModel
from transformers import NemotronHConfig, NemotronHForCausalLM

from megatron_ext.convert.mapping import pieces_of
from megatron_ext.convert.tensors import by_hf_name, hf_tensor
from megatron_ext.plan.stage_plan import StagePlan

LAYER_TYPES = {"M": "linear_attention", "-": "mlp", "*": "full_attention"}
TRAINING_CHUNK_SIZE = 128  # NemotronHConfig's default


def nemotron_h(plan: StagePlan, *, chunk_size: int = TRAINING_CHUNK_SIZE) -> NemotronHForCausalLM:
    """Builds transformers' model in the shapes of a plan.

    It clamps dt at `time_step_min` from below, which Megatron does not, so that is next to 0 here.
    """
    model = plan.model
    config = NemotronHConfig(
        vocab_size=plan.model_size.padded_vocab_size,
        hidden_size=model.hidden_size,
        layers_block_type=[LAYER_TYPES[symbol] for symbol in model.hybrid_layer_pattern],
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        head_dim=model.kv_channels,
        intermediate_size=model.ffn_hidden_size,
        ssm_state_size=model.mamba_state_dim,
        mamba_num_heads=model.mamba_num_heads,
        mamba_head_dim=model.mamba_head_dim,
        n_groups=model.mamba_num_groups,
        chunk_size=chunk_size,
        mlp_hidden_act="relu2",
        layer_norm_epsilon=model.layernorm_epsilon,
        tie_word_embeddings=model.share_embeddings_and_output_weights,
        time_step_min=1e-9,
        use_cache=False,
    )
    return NemotronHForCausalLM(config)


def copy_weights(ours: HybridModel, theirs: NemotronHForCausalLM, plan: StagePlan) -> None:
    """Writes our weights (one rank) into transformers' model; every one of its tensors must be written."""
    pieces = by_hf_name(pieces_of(plan.model, plan.model_size.padded_vocab_size))
    sharded = ours.sharded_state_dict(metadata={"dp_cp_group": ours.pg_collection.dp_cp})
    apply_factories(sharded)
    weights = {part.key: part.data for part in nested_values(sharded) if isinstance(part, ShardedTensor)}
    renamed = {
        name.replace("backbone.", "model."): hf_tensor(group, weights.__getitem__, dtype=torch.float32)
        for name, group in pieces.items()
    }
    theirs.load_state_dict(renamed, strict=True)
