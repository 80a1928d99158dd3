"""Tokens chosen from rows of logits, against exact probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megatron_ext.rollout.choose import choose_tokens
from megatron_ext.rollout.keyed_random import stream_key, uniforms
from megatron_ext.rollout.protocol import Sampling

DRAWS = 20_000
SKEWED = [0.4, 0.05, 0.2, 0.03, 0.12, 0.1, 0.06, 0.04]


def counts_of(probabilities: list[float], *, vocab_size: int | None = None, **options: float) -> list[int]:
    """How often each id is chosen in `DRAWS` draws of one stream."""
    steps = np.arange(DRAWS, dtype=np.uint64)
    drawn = torch.from_numpy(uniforms(np.full(DRAWS, stream_key(0, 0), np.uint64), steps))
    logits = torch.tensor(probabilities).log().expand(DRAWS, -1)
    chosen = choose_tokens(
        logits,
        drawn,
        Sampling(1, **options),  # type: ignore[arg-type]
        vocab_size=vocab_size or len(probabilities),
    )
    return torch.bincount(chosen.tokens, minlength=len(probabilities)).tolist()


def exact(probabilities: list[float], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """The distribution by its definition, one token at a time."""
    tempered = [p ** (1 / temperature) for p in probabilities]
    order = sorted(range(len(tempered)), key=lambda i: -tempered[i])[: top_k or None]
    total, before, kept = sum(tempered[i] for i in order), 0.0, []
    for i in order:
        if before / total < top_p:
            kept.append(i)
        before += tempered[i]
    mass = sum(tempered[i] for i in kept)
    return [tempered[i] / mass if i in kept else 0.0 for i in range(len(tempered))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.75},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9},
    ],
)
def test_tokens_follow_the_exact_distribution(options: dict[str, float]) -> None:
    """Chi-square below its 99.9 % quantile by Wilson and Hilferty; the draws are fixed, so it holds always or never."""
    expected, counts = exact(SKEWED, **options), counts_of(SKEWED, **options)  # type: ignore[arg-type]
    assert [count for count, p in zip(counts, expected, strict=True) if p == 0.0] == [0] * expected.count(0.0)
    terms = [(count - DRAWS * p) ** 2 / (DRAWS * p) for count, p in zip(counts, expected, strict=True) if p > 0]
    freedom = len(terms) - 1
    assert sum(terms) < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_temperature_zero_takes_the_most_likely() -> None:
    assert counts_of([0.3, 0.4, 0.3], temperature=0.0) == [0, DRAWS, 0]


def test_a_tiny_temperature_is_as_good_as_zero() -> None:
    assert counts_of([0.3, 0.4, 0.3], temperature=1e-40) == [0, DRAWS, 0]


def test_top_p_keeps_the_most_likely_always() -> None:
    assert counts_of([0.1, 0.9], top_p=0.01) == [0, DRAWS]


def test_top_p_beyond_the_first_candidates_keeps_what_it_must() -> None:
    """1,000 ids alike: 0.9 of the mass are 900 of them, more than are tried first."""
    counts = counts_of([1e-3] * 1000, top_p=0.9)
    assert sum(count > 0 for count in counts) == 900


def test_ids_beyond_the_tokenizer_are_never_chosen() -> None:
    counts = counts_of([0.05, 0.05, 0.9], vocab_size=2)
    assert counts[2] == 0
    assert min(counts[:2]) > 0.48 * DRAWS
    assert counts_of([0.05, 0.06, 0.9], vocab_size=2, temperature=0.0) == [0, DRAWS, 0]


def test_log_probs_are_those_before_top_k_and_over_the_padded_vocabulary() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log()
    chosen = choose_tokens(logits, torch.tensor([0.5]).double(), Sampling(1, top_k=1), vocab_size=2)
    assert chosen.tokens.tolist() == [1]
    assert chosen.log_probs.item() == pytest.approx(math.log(0.2), abs=1e-6)


def test_log_probs_are_at_the_sampling_temperature() -> None:
    logits = torch.tensor([[0.2, 0.8]]).log()
    chosen = choose_tokens(logits, torch.tensor([0.9]).double(), Sampling(1, temperature=2.0), vocab_size=2)
    assert chosen.log_probs.item() == pytest.approx(math.log(2 / 3), abs=1e-6)  # odds of 4 become odds of 2


def test_a_row_of_nan_has_no_finite_log_prob_and_leaves_the_others_alone() -> None:
    logits = torch.tensor([[0.0, math.nan, 0.0], [0.0, 0.0, 0.0]])
    for options in ({}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 2}):
        chosen = choose_tokens(logits, torch.tensor([0.5, 0.5]).double(), Sampling(1, **options), vocab_size=3)  # type: ignore[arg-type]
        assert torch.isfinite(chosen.log_probs).tolist() == [False, True]


def test_a_row_is_chosen_alike_beside_any_others() -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    drawn = torch.rand(64, generator=torch.Generator().manual_seed(1)).double()
    together = choose_tokens(logits, drawn, Sampling(1, top_p=0.9), vocab_size=50).tokens
    alone = [
        choose_tokens(logits[i : i + 1], drawn[i : i + 1], Sampling(1, top_p=0.9), vocab_size=50) for i in range(64)
    ]
    assert together.tolist() == [chosen.tokens.item() for chosen in alone]
