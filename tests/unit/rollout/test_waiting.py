"""The order in which samples get slots."""

from __future__ import annotations

import pytest

from megatron_ext.rollout import waiting
from megatron_ext.rollout.protocol import Prompt
from megatron_ext.rollout.waiting import Sample, WaitingSamples


def queue(*lengths: int, num_samples: int = 1) -> WaitingSamples:
    return WaitingSamples({10 + i: Prompt(ids=(1,) * n, num_samples=num_samples) for i, n in enumerate(lengths)})


def test_prompts_of_one_length_are_taken_together_longest_first() -> None:
    samples = queue(3, 5, 3, 5)
    assert samples.take(9) == [Sample(11, 0), Sample(13, 0)]
    assert samples.take(9) == [Sample(10, 0), Sample(12, 0)]
    assert len(samples) == 0


def test_no_more_are_taken_than_there_are_slots() -> None:
    samples = queue(4, num_samples=3)
    assert samples.take(2) == [Sample(10, 0), Sample(10, 1)]
    assert samples.next_is_of({10})
    assert samples.take(2) == [Sample(10, 2)]


def test_samples_of_a_prompt_that_was_read_are_taken_alone() -> None:
    samples = queue(4, 4, num_samples=2)
    samples.take(1)
    assert samples.take(9, read={10}) == [Sample(10, 1)]
    assert samples.take(9, read={10}) == [Sample(11, 0), Sample(11, 1)]


def test_prompts_of_one_pass_hold_a_bounded_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PROMPT_TOKENS", 8)
    samples = queue(4, 4, 4, num_samples=2)
    assert [sample.prompt_index for sample in samples.take(9)] == [10, 10, 11, 11]  # two prompts of 4
    longer = queue(20)
    assert longer.take(9) == [Sample(10, 0)]  # alone
