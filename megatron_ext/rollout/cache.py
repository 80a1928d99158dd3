"""What a model keeps of the texts that it goes on with: one slot a text, allocated once, changed in place.

    layer `*`   keys and values   [slots, groups, tokens, width]   each, in the parameters' dtype
    layer `M`   convolution       [slots, channels, 4]             in the parameters' dtype; on a CPU tap by tap
                SSM state         [slots, heads, width, state]     float32: it is added to at every token

Slots in use are the first ones, so that a step computes over a prefix and never over holes.
`plan/rollout.py` counts the bytes without building it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import Tensor

from megatron_ext.models.conv import tap_major
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA
from megatron_ext.runtime.device import plain_torch

LayerState = tuple[Tensor, ...]
"""Of a Mamba-2 layer (convolution, SSM state), of attention (keys, values), of an MLP nothing."""


class RolloutCache:
    """The states of some texts in all layers of this rank.

    Args:
        model: Whose layers; its weights' dtype and device are taken.
        num_slots: Texts.
        tokens_per_slot: Tokens of a text at most.

    Attributes:
        layers: A state for each layer.
        lengths: Tokens read, [slots], int64, on the model's device.
    """

    def __init__(self, model: HybridModel, *, num_slots: int, tokens_per_slot: int) -> None:
        self.layers: list[LayerState] = [
            _STATES[symbol](layer, num_slots, tokens_per_slot) if symbol in _STATES else ()
            for symbol, layer in zip(model.decoder.layer_type_list, model.decoder.layers, strict=True)
        ]
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=next(model.parameters()).device)
        self._attends = [symbol == ATTENTION for symbol in model.decoder.layer_type_list]

    def layers_of(self, num_slots: int) -> list[LayerState]:
        """The states of the first slots, which change with the cache's own."""
        if num_slots == len(self.lengths):
            return self.layers
        return [tuple(state[:num_slots] for state in layer) for layer in self.layers]

    @property
    def num_bytes(self) -> int:
        """Bytes of all states."""
        return sum(state.numel() * state.element_size() for layer in self.layers for state in layer)

    @torch.inference_mode()
    @plain_torch()
    def copy(self, source: RolloutCache, rows: Sequence[int], slots: Sequence[int], *, length: int) -> None:
        """Copies texts of `source`, which may be this cache, into slots.

        Args:
            source: With the same layers.
            rows: Slots of `source`; a row may come several times.
            slots: As many slots of this cache, each once, none of them among the rows where `source` is this cache.
            length: Tokens read of the longest of these texts; keys and values beyond are left alone.
        """
        places = torch.tensor([rows, slots], dtype=torch.int64).to(self.lengths.device)
        self.lengths[places[1]] = source.lengths[places[0]]
        for attends, mine, theirs in zip(self._attends, self.layers, source.layers, strict=True):
            for target, state in zip(mine, theirs, strict=True):
                if attends:
                    target[:, :, :length][places[1]] = state[:, :, :length][places[0]]
                else:
                    target[places[1]] = state[places[0]]

    @torch.inference_mode()
    @plain_torch()
    def clear(self) -> None:
        """Forgets everything: NaN left behind would reach other texts, for attention multiplies it by a weight of 0."""
        self.lengths.zero_()
        for layer in self.layers:
            for state in layer:
                state.zero_()


def _mamba_state(layer: torch.nn.Module, slots: int, _tokens: int) -> LayerState:
    mixer = layer.mixer
    conv_shape, ssm_shape = mixer.mamba_state_shapes_per_request()
    weight = mixer.conv1d_weight
    conv, ssm = weight.new_zeros(slots, *conv_shape), weight.new_zeros(slots, *ssm_shape, dtype=torch.float32)
    return (tap_major(conv) if weight.device.type == "cpu" else conv), ssm


def _attention_state(layer: torch.nn.Module, slots: int, tokens: int) -> LayerState:
    attention = layer.self_attention
    shape = (slots, attention.num_query_groups_per_partition, tokens, attention.hidden_size_per_attention_head)
    weight = attention.linear_qkv.weight
    return weight.new_zeros(shape), weight.new_zeros(shape)


_STATES = {MAMBA: _mamba_state, ATTENTION: _attention_state}
