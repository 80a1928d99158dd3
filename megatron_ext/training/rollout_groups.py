"""A prompt's completions with their rewards and advantages, and what a step's groups say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_ext.datasets.prompts import DrawnPrompt
from megatron_ext.objectives.rewards import RewardParts
from megatron_ext.objectives.rl import RlOptions, group_advantages, length_penalty, zero_variance_groups
from megatron_ext.rollout.protocol import Completion

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Scored:
    """One completion.

    Attributes:
        completion: As sampled.
        text: Without the token that ended it.
        reward: Its parts.
    """

    completion: Completion
    text: str
    reward: RewardParts

    @property
    def length(self) -> int:
        """Its tokens, the one that ended it included."""
        return len(self.completion.token_ids)

    @property
    def is_cut_off(self) -> bool:
        """Whether it ended at its limit."""
        return self.completion.finish == "length"

    @property
    def is_right(self) -> bool:
        """Whether its answer is right, whatever its form."""
        return self.reward.parts[ACCURACY] > 0


@dataclass(frozen=True)
class Group:
    """All completions of one drawn prompt.

    Attributes:
        prompt: What was asked.
        samples: By their number.
        penalties: For the length of each, at most 0: added to its reward before advantages are taken.
        advantages: Of each.
        is_flat: Whether all rewards are equal, penalties of length apart: it teaches nothing.
    """

    prompt: DrawnPrompt
    samples: tuple[Scored, ...]
    penalties: tuple[float, ...]
    advantages: tuple[float, ...]
    is_flat: bool

    def records(self, step: int, source: str, *, is_trained: bool) -> list[dict[str, Any]]:
        """Lines of `datasets/rollout_file.py`."""
        row = self.prompt.row
        shared = {
            "step": step,
            "place": self.prompt.place,
            "prompt_id": row.id,
            "name": str(row.record.get("id") or row.id),
            "source": source,
            "domain": row.domain,
            "family": row.family,
            "prompt": row.record["prompt"],
            "truth": row.record["reward_model"]["ground_truth"],
        }
        return [
            shared
            | {
                "sample": sample.completion.sample_index,
                "text": sample.text,
                "tokens": sample.length,
                "finish": sample.completion.finish,
                "reward": sample.reward.total,
                "parts": dict(sample.reward.parts),
                "penalty": penalty,
                "outcome": sample.reward.outcome,
                "detail": sample.reward.detail,
                "advantage": advantage,
                "log_prob": sum(sample.completion.log_probs) / sample.length,
                "is_trained": is_trained,
            }
            for sample, penalty, advantage in zip(self.samples, self.penalties, self.advantages, strict=True)
        ]


def make_groups(prompts: Sequence[DrawnPrompt], scored: Sequence[Sequence[Scored]], options: RlOptions) -> list[Group]:
    """Gives the completions of each prompt their advantages.

    Args:
        prompts: What was asked.
        scored: The completions of each, by their number.
        options: Of the stage.
    """
    rewards = torch.tensor([[sample.reward.total for sample in group] for group in scored], dtype=torch.float64)
    penalties = torch.tensor(
        [[length_penalty(sample.length, options) for sample in group] for group in scored], dtype=torch.float64
    )
    advantages = group_advantages(rewards + penalties, options.advantage).tolist()
    flat = zero_variance_groups(rewards).tolist()
    return [
        Group(prompt, tuple(samples), tuple(penalty), tuple(of_group), is_flat)
        for prompt, samples, penalty, of_group, is_flat in zip(
            prompts, scored, penalties.tolist(), advantages, flat, strict=True
        )
    ]


def without_advantages(prompt: DrawnPrompt, samples: Sequence[Scored]) -> Group:
    """Completions of a step that failed, to be kept."""
    nothing = (0.0,) * len(samples)
    return Group(prompt, tuple(samples), nothing, nothing, is_flat=False)


def choose_groups(found: Sequence[Group], count: int) -> tuple[list[Group], list[Group]]:
    """The groups that a step learns from, and those that are replaced, each in the order in which they were drawn.

    Args:
        found: All that were sampled for the step, at least `count`.
        count: Groups of a step. Flat ones are kept where there are too few others.
    """
    by_use = sorted(range(len(found)), key=lambda place: (found[place].is_flat, place))
    return [found[place] for place in sorted(by_use[:count])], [found[place] for place in sorted(by_use[count:])]


def facts_of(groups: Sequence[Group]) -> dict[str, Any]:
    """What there is to log of a step's completions, by the names of metrics.jsonl."""
    samples = [sample for group in groups for sample in group.samples]
    parts = Counter[str]()
    for sample in samples:
        parts.update(sample.reward.parts)
    lengths = [sample.length for sample in samples]
    outcomes = Counter(sample.reward.outcome for sample in samples)
    return {
        "reward": _mean(samples, lambda sample: sample.reward.total),
        "length_penalty": sum(penalty for group in groups for penalty in group.penalties) / len(samples),
        "reward_by_part": {name: total / len(samples) for name, total in parts.items()},
        "pass_rate": _mean(samples, lambda sample: sample.is_right),
        "pass_rate_by_domain": pass_rates_by_domain(groups),
        "response_length": sum(lengths) / len(lengths),
        "response_length_max": max(lengths),
        "truncated_fraction": _mean(samples, lambda sample: sample.is_cut_off),
        "zero_variance_groups": sum(group.is_flat for group in groups),
        "scorer_timeouts": outcomes["timed-out"],
        "scorer_failures": outcomes["failed"] + outcomes["crashed"],
    }


def pass_rates_by_domain(groups: Sequence[Group]) -> dict[str, float]:
    """Right answers over completions, of each domain."""
    found: dict[str, list[Scored]] = {}
    for group in groups:
        found.setdefault(group.prompt.row.domain, []).extend(group.samples)
    return {domain: _mean(of_domain, lambda sample: sample.is_right) for domain, of_domain in sorted(found.items())}


def _mean(samples: Sequence[Scored], value: Callable[[Scored], float]) -> float:
    return float(sum(value(sample) for sample in samples)) / len(samples)
