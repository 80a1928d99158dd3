"""The local backend's model over cached texts: whole prompts, then one token of every text at a time.

The weights are the training model's own; the wiring between them is core's, less what training needs around it
(core 0.19, `ssm/mamba_layer.py`, `transformer/transformer_layer.py`, `models/hybrid/hybrid_block.py`): at a token a
step, core's own path through its layers took longer than the arithmetic. Projections multiply this rank's slice and
add up over the tensor-parallel ranks, so every rank holds whole hidden states, whatever `sequence_parallel` says.

Shapes: s tokens, b texts, n slots in use, v padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import Tensor

from megatron_ext.models.attention import Turns, decode_bias
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA, MLP
from megatron_ext.rollout.cache import LayerState, RolloutCache
from megatron_ext.runtime.device import plain_torch


class _NewTokens(NamedTuple):
    """Where the new token of each text stands, and what it sees."""

    lengths: Tensor | int  # cached tokens [n], or of each text
    used: int  # of the longest text, the new token counted
    bias: Tensor | None
    turns: Turns | None


class CachedForward:
    """Reads prompts into a cache and advances cached texts.

    Args:
        model: The whole model on the local backend: one pipeline stage, any number of tensor-parallel ranks.
        max_tokens: Of a text.

    Attributes:
        model: As given.
        tp_group: Its tensor-parallel ranks.
    """

    def __init__(self, model: HybridModel, *, max_tokens: int) -> None:
        self.model = model
        self.tp_group = model.pg_collection.tp
        self._layers = list(zip(model.decoder.layer_type_list, model.decoder.layers, strict=True))
        self._turns: Turns | None = None  # [max_tokens, width] each
        if model.position_embedding_type == "rope":
            angles = model.rotary_pos_emb(max_tokens)[:, 0, 0]
            self._turns = Turns(angles.cos(), angles.sin())
        self._take_weights()

    @torch.inference_mode()
    @plain_torch()
    def _take_weights(self) -> None:
        """Prepares what every token needs of the present weights; nothing of the size of a matrix is copied."""
        model = self.model
        is_tied = model.share_embeddings_and_output_weights
        self._output_weight = model.shared_embedding_or_output_weight() if is_tied else model.output_layer.weight
        self._steps = [_STEPS[symbol](layer) for symbol, layer in self._layers]

    @torch.inference_mode()
    @plain_torch()
    def read_prompts(self, tokens: Tensor, cache: RolloutCache) -> Tensor:
        """Reads whole prompts of one length, with the weights of now, which `decode` goes on with.

        Args:
            tokens: [b, s].
            cache: Of b slots and at least s tokens; filled.

        Returns:
            Logits after the last token, [b, v] float32.
        """
        self._take_weights()
        hidden = self._embed(tokens.t())  # [s, b, h]
        turns = self._turns and Turns(*(table[: len(hidden), None, None, None] for table in self._turns))
        for (symbol, layer), state in zip(self._layers, cache.layers, strict=True):
            if symbol == MAMBA:
                change = layer.mixer.read_prompts(layer.norm(hidden), *state)
            elif symbol == ATTENTION:
                change = layer.self_attention.read_prompts(layer.input_layernorm(hidden), *state, turns=turns)
            else:
                change = _mlp_step(layer)(hidden)
            hidden = hidden + self._added_up(change)
        cache.lengths.fill_(len(hidden))
        return self._logits(hidden[-1])

    @torch.inference_mode()
    @plain_torch()
    def decode(self, tokens: Tensor, cache: RolloutCache, *, shortest: int, longest: int) -> Tensor:
        """Appends one token to each of the first n texts of the cache.

        Args:
            tokens: [n].
            cache: Advanced in place.
            shortest: Tokens of the shortest of these texts, the new one not counted.
            longest: The same of the longest.

        Returns:
            Logits after these tokens, [n, v] float32.
        """
        num_rows = len(tokens)
        lengths = cache.lengths[:num_rows]
        hidden = self._embed(tokens)  # [n, h]
        bias = decode_bias(lengths, shortest=shortest, longest=longest, dtype=hidden.dtype)
        turns = self._turns and Turns(*(table[lengths, None, None] for table in self._turns))  # [n, 1, 1, width]
        new = _NewTokens(lengths if bias is not None else longest, longest + 1, bias, turns)
        for step, state in zip(self._steps, cache.layers_of(num_rows), strict=True):
            hidden = hidden + self._added_up(step(hidden, state, new))
        lengths += 1
        return self._logits(hidden)

    def _embed(self, tokens: Tensor) -> Tensor:
        words = self.model.embedding.word_embeddings
        if self.tp_group.size() == 1:
            return F.embedding(tokens, words.weight)
        local = tokens - words.vocab_start_index
        is_ours = (local >= 0) & (local < len(words.weight))
        return self._added_up(F.embedding(local * is_ours, words.weight) * is_ours[..., None])

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = F.linear(self.model.decoder.final_norm(hidden), self._output_weight)
        if self.tp_group.size() > 1:
            parts = [torch.empty_like(logits) for _ in range(self.tp_group.size())]
            dist.all_gather(parts, logits, group=self.tp_group)
            logits = torch.cat(parts, dim=-1)
        return logits.float()

    def _added_up(self, part: Tensor) -> Tensor:
        if self.tp_group.size() > 1:
            part = part.contiguous()
            dist.all_reduce(part, group=self.tp_group)
        return part


_Step = Callable[[Tensor, LayerState, _NewTokens], Tensor]
"""A layer's change of [n, h] hidden states, with everything looked up that every token would look up."""


def _mamba_step(layer: torch.nn.Module) -> _Step:
    norm, decode, weights = layer.norm.forward, layer.mixer.decode, layer.mixer.decode_weights()
    return lambda hidden, state, _: decode(norm(hidden), *state, weights)


def _attention_step(layer: torch.nn.Module) -> _Step:
    norm, decode = layer.input_layernorm.forward, layer.self_attention.decode
    return lambda hidden, state, new: decode(norm(hidden), *state, **new._asdict())


def _mlp_step(layer: torch.nn.Module) -> _Step:
    norm, activation = layer.pre_mlp_layernorm.forward, layer.mlp.activation_func
    first, second = layer.mlp.linear_fc1.weight, layer.mlp.linear_fc2.weight
    return lambda hidden, *_: F.linear(activation(F.linear(norm(hidden), first)), second)


_STEPS: dict[str, Callable[[torch.nn.Module], _Step]] = {MAMBA: _mamba_step, ATTENTION: _attention_step, MLP: _mlp_step}
