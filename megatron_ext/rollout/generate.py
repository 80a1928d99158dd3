"""One prompt continued, by the engine that fits the model's layers.

The `local` backend samples through `InProcessEngine`. Transformer Engine's layers go through core's
`StaticInferenceContext`, which keeps one position for its whole batch and so takes one prompt at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Set

import numpy as np
import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.utils import InferenceMode
from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import Tensor

from megatron_ext.models.stack import LocalHybridStack
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.choose import choose_tokens
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.keyed_random import stream_key, uniforms
from megatron_ext.rollout.protocol import Prompt, Sampling, check_prompts
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
    prompt = Prompt(tuple(prompt_ids), seed=seed)
    sampling = Sampling(
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_ids=frozenset({plan.data.eod_id, *stop_ids}),
    )
    if isinstance(model.decoder, LocalHybridStack):
        engine = InProcessEngine(
            model, plan, model.pg_collection, num_slots=1, tokens_per_slot=len(prompt.ids) + max_new_tokens
        )
        return list(engine.generate([prompt], sampling)[0].token_ids)
    return _through_core(model, prompt, sampling, vocab_size=plan.data.tokenizer_vocab_size)


def _through_core(model: HybridModel, prompt: Prompt, sampling: Sampling, *, vocab_size: int) -> list[int]:
    check_prompts([prompt], vocab_size=vocab_size)
    keys = np.array([stream_key(prompt.seed, 0)], np.uint64)
    new: list[int] = []
    for logits in next_token_logits(model, list(prompt.ids), new, sampling.max_new_tokens):
        drawn = torch.from_numpy(uniforms(keys, np.array([len(new)], np.uint64))).to(logits.device)
        new.append(int(choose_tokens(logits[None], drawn, sampling, vocab_size=vocab_size).tokens))
        if new[-1] in sampling.stop_ids:
            break
    return new


def next_token_logits(model: HybridModel, prompt: list[int], new: list[int], max_new_tokens: int) -> Iterator[Tensor]:
    """Yields core's logits [padded vocabulary] after the prompt, then after each token appended to `new`."""
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
