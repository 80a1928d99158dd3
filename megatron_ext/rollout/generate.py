"""One prompt continued, by the in-process engine."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.inprocess import InProcessEngine, unwrapped
from megatron_ext.rollout.protocol import Prompt, Sampling


def generate(
    model: Any,
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
        model: A whole model, wrapped or not: one pipeline stage, any number of tensor-parallel ranks.
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
    engine = InProcessEngine(
        model, plan, unwrapped(model).pg_collection, num_slots=1, tokens_per_slot=len(prompt.ids) + max_new_tokens
    )
    return list(engine.generate([prompt], sampling)[0].token_ids)
