"""Cached generation for one prompt.

The prompt runs once through the model and fills the caches (keys and values, convolution and SSM states);
each further token costs one step, whatever the length so far. Core's `StaticInferenceContext` holds the
caches; it keeps one position for its whole batch, so prompts of different lengths need a context each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Set

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.utils import InferenceMode
from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import Tensor

from data_tools.errors import UsageError
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.device import device, device_scope


def generate(
    model: HybridModel,
    plan: StagePlan,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Set[int] = frozenset(),
) -> list[int]:
    """Continues a prompt until the end-of-document token, one of `stop_ids`, or `max_new_tokens`.

    Ids that the tokenizer does not have (the padding of the vocabulary) are never chosen.

    Args:
        model: A whole model: one pipeline stage, any number of tensor-parallel ranks.
        plan: The plan that built it; gives the end-of-document id and the size of the tokenizer.
        prompt_ids: At least one token.
        max_new_tokens: Tokens to append at most, at least 1.
        temperature: 0 takes the most likely token; 1 samples from the model's distribution.
        top_k: Sample among the k most likely tokens only; 0 keeps all.
        top_p: Sample among the most likely tokens whose probabilities reach this sum, in (0, 1].
        seed: Same seed, same text.
        stop_ids: More tokens that end the text.

    Returns:
        The new tokens; the last one is the token that ended the text, if the model ended it itself.

    Raises:
        UsageError: For an argument outside its range.
    """
    vocab_size = plan.data.tokenizer_vocab_size
    _check(prompt_ids, vocab_size, max_new_tokens, temperature, top_k, top_p)
    generator = torch.Generator().manual_seed(seed)
    new: list[int] = []
    for logits in next_token_logits(model, list(prompt_ids), new, max_new_tokens):
        token = choose_token(
            logits[:vocab_size], temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )
        new.append(token)
        if token == plan.data.eod_id or token in stop_ids:
            break
    return new


def choose_token(logits: Tensor, *, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """Chooses one token.

    Temperature comes first, then `top_k`, then `top_p` over what is left (Source: the order of
    Hugging Face transformers). The most likely token always stays.

    Args:
        logits: [vocabulary].
        temperature: 0 takes the largest logit.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        generator: A CPU generator.
    """
    if temperature == 0:
        return int(logits.argmax())
    scaled, ids = torch.sort(logits.double().cpu() / temperature, descending=True)
    if top_k:
        scaled, ids = scaled[:top_k], ids[:top_k]
    probabilities = scaled.softmax(0)
    mass_before = probabilities.cumsum(0) - probabilities
    probabilities = torch.where(mass_before < top_p, probabilities, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def next_token_logits(model: HybridModel, prompt: list[int], new: list[int], max_new_tokens: int) -> Iterator[Tensor]:
    """Yields the logits [padded vocabulary] after the prompt, then after each token appended to `new`."""
    context = StaticInferenceContext(max_batch_size=1, max_sequence_length=len(prompt) + max_new_tokens)
    for index in range(max_new_tokens):
        with device_scope(), torch.no_grad(), InferenceMode.active(), _evaluating(model):
            tokens = torch.tensor([new[-1:] if index else prompt], device=device())
            begin = context.sequence_len_offset
            positions = torch.arange(begin, begin + tokens.shape[1], device=device())[None]
            logits = model(tokens, positions, None, inference_context=context, runtime_gather_output=True)
            context.sequence_len_offset += tokens.shape[1]
            context.enable_decode_mode()
        yield logits[0, -1].float()


@contextlib.contextmanager
def _evaluating(model: HybridModel) -> Iterator[None]:
    """Evaluation mode for a while, as before afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _check(
    prompt_ids: Sequence[int], vocab_size: int, max_new_tokens: int, temperature: float, top_k: int, top_p: float
) -> None:
    if not prompt_ids or not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
        raise UsageError(f"prompt: {len(prompt_ids)} tokens: it needs at least one, all ids in [0, {vocab_size}).")
    rules = {
        "max_new_tokens": (max_new_tokens, max_new_tokens >= 1, "at least 1"),
        "temperature": (temperature, temperature >= 0, "at least 0; 0 takes the most likely token"),
        "top_k": (top_k, top_k >= 0, "at least 0; 0 keeps all tokens"),
        "top_p": (top_p, 0 < top_p <= 1, "in (0, 1]; 1 keeps all tokens"),
    }
    for name, (value, holds, rule) in rules.items():
        if not holds:
            raise UsageError(f"{name}: {value}: must be {rule}.")
