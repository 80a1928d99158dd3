"""One token for every row of a batch, in a handful of tensor operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_ext.rollout.protocol import Sampling
from megatron_ext.runtime.device import plain_torch

_FIRST_CANDIDATES = 256
"""Most likely tokens among which `top_p` is tried first: sorting 4,096 logits took five times as long as these."""


class Chosen(NamedTuple):
    """What was chosen, [b] each; a log-probability that is not finite says that the row's logits were not."""

    tokens: Tensor
    log_probs: Tensor


@torch.inference_mode()
@plain_torch()
def choose_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling, *, vocab_size: int) -> Chosen:
    """Chooses a token of each row: the one at which the running sum of probabilities passes the row's number.

    Args:
        logits: [b, padded vocabulary], float32.
        uniforms: Numbers in [0, 1), [b] float64.
        sampling: Temperature, `top_k`, `top_p`.
        vocab_size: Ids of the tokenizer; higher ones are never chosen, yet count in the log-probabilities.

    Returns:
        Tokens, int64, and their log-probabilities at the sampling temperature before `top_k` and `top_p`, float32.
    """
    scaled = logits
    if sampling.log_prob_temperature != 1.0:  # less the largest first: a tiny temperature must not overflow
        scaled = (logits - logits.amax(-1, keepdim=True)) / sampling.log_prob_temperature
    log_probs = scaled.log_softmax(-1)
    known = log_probs[:, :vocab_size]
    if sampling.temperature == 0:
        tokens = known.argmax(-1)
    elif sampling.top_k == 0 and sampling.top_p == 1:
        tokens = _where_sum_passes(known.exp(), uniforms)
    else:
        kept, ids = _candidates(known.exp(), sampling)
        tokens = ids.gather(-1, _where_sum_passes(kept, uniforms)[:, None])[:, 0]
    return Chosen(tokens, log_probs.gather(-1, tokens[:, None])[:, 0])


def _where_sum_passes(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first index whose running sum exceeds `uniforms` of the whole sum: [b, v], [b] -> [b].

    Sums are float64: in float32 a token below 6e-8 near the end of the vocabulary could never be reached.
    """
    sums = probabilities.cumsum(-1, dtype=torch.float64)
    places = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True)
    return places[:, 0].clamp_(max=probabilities.shape[-1] - 1)  # beyond the end only where probabilities are NaN


def _candidates(probabilities: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The probabilities that `top_k` and then `top_p` keep, others 0, in falling order, and their ids; [b, kept]."""
    vocab_size = probabilities.shape[-1]
    counts = [sampling.top_k] if sampling.top_k else [_FIRST_CANDIDATES, vocab_size]
    for count in counts:
        largest, ids = probabilities.topk(min(count, vocab_size), dim=-1)
        sums = largest.cumsum(-1, dtype=torch.float64)
        total = sums[:, -1:] if sampling.top_k else probabilities.sum(-1, keepdim=True, dtype=torch.float64)
        if bool((sums[:, -1:] >= sampling.top_p * total).all()):
            break
    return torch.where(sums - largest < sampling.top_p * total, largest, 0.0), ids
