"""Shares of prompts, small enough for a pencil."""

from __future__ import annotations

from megatron_ext.rollout.protocol import Prompt
from megatron_ext.rollout.share import expected_tokens, share_prompts


def prompt(length: int, *, num_samples: int = 1, expected: int | None = None) -> Prompt:
    return Prompt(ids=tuple(range(length)), num_samples=num_samples, expected_new_tokens=expected)


def test_a_prompt_costs_its_tokens_once_and_its_expected_completions() -> None:
    assert expected_tokens(prompt(5, num_samples=4, expected=10), max_new_tokens=100) == 45
    assert expected_tokens(prompt(5, num_samples=4), max_new_tokens=100) == 405
    assert expected_tokens(prompt(5, num_samples=4, expected=1000), max_new_tokens=100) == 405


def test_the_dearest_prompt_left_goes_to_the_rank_with_the_least_work() -> None:
    prompts = [prompt(n) for n in (1, 8, 3, 5, 4)]  # and one new token each: 2, 9, 4, 6, 5
    assert share_prompts(prompts, 2, max_new_tokens=1) == [[1, 2], [0, 3, 4]]  # 9 + 4 and 6 + 5 + 2


def test_every_prompt_goes_to_exactly_one_rank_whole() -> None:
    shares = share_prompts([prompt(3)] * 5, 3, max_new_tokens=2)
    assert shares == [[0, 3], [1, 4], [2]]


def test_ranks_beyond_the_prompts_get_none() -> None:
    assert share_prompts([prompt(2)], 3, max_new_tokens=1) == [[0], [], []]
