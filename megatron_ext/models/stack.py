"""The stack of hybrid layers, with the final norm that fits the backend."""

from __future__ import annotations

from typing import Any

from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig

from megatron_ext.models.norm import RMSNorm


class LocalHybridStack(HybridStack):
    """Core's stack, which otherwise builds Transformer Engine's final norm whatever its spec says.

    The parameter keeps core's name, `final_norm.weight`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: HybridStackSubmodules,
        *,
        pg_collection: ProcessGroupCollection,
        post_process: bool = True,
        post_layer_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            config, submodules, pg_collection=pg_collection, post_process=post_process, post_layer_norm=False, **kwargs
        )
        self.post_layer_norm = post_layer_norm
        if post_process and post_layer_norm:
            self.final_norm = RMSNorm(config, config.hidden_size, eps=config.layernorm_epsilon)
