"""What may be asked of a sampler."""

from __future__ import annotations

from typing import Any

import pytest

from data_tools.errors import UsageError
from megatron_ext.rollout.protocol import Sampling


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0: must be at least 1."),
        ({"temperature": -0.5}, "temperature: -0.5: must be at least 0; 0 takes the most likely token."),
        ({"top_k": -1}, "top_k: -1: must be at least 0; 0 keeps all tokens."),
        ({"top_p": 0.0}, r"top_p: 0.0: must be in \(0, 1\]; 1 keeps all tokens."),
        ({"stop_strings": ("a", "")}, r"stop_strings: \('a', ''\): must be not empty, each of them."),
    ],
)
def test_a_value_outside_its_range_is_named_with_its_rule(value: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**{"max_new_tokens": 1, **value})


def test_log_probs_of_greedy_sampling_are_those_of_temperature_1() -> None:
    assert Sampling(1, temperature=0.0).log_prob_temperature == 1.0
    assert Sampling(1, temperature=0.7).log_prob_temperature == 0.7
