"""What an engine that samples from a policy is asked, and what it answers.

Log-probabilities are those of the sampling temperature, over the whole padded vocabulary, before `top_k` and `top_p`:
what the training path gives for the same tokens when its logits are divided by the temperature. Ids that the
tokenizer does not have are never sampled, yet stay in the normaliser, because training normalises over them too.
At temperature 0 the most likely token is taken, and the log-probabilities are those of temperature 1.

A sample is a function of the weights, its prompt's ids, the sampling, and (seed, sample index): neither of the slot
or rank that it ran on, nor of what else was sampled beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from data_tools.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How every token of a call is chosen: temperature, then `top_k`, then `top_p` over what is left.

    Source: the order of Hugging Face transformers. The most likely token always stays.

    Attributes:
        max_new_tokens: Tokens of a completion at most, at least 1.
        temperature: 0 takes the most likely token; 1 samples from the model's distribution.
        top_k: Sample among the k most likely tokens only; 0 keeps all.
        top_p: Sample among the most likely tokens whose probabilities reach this sum, in (0, 1].
        stop_ids: A completion ends with the first of them, which belongs to it; ids that the tokenizer does not have
            never come.
        stop_strings: A completion ends with the token that completes one of them in its decoded text, wherever
            the borders of tokens fall. The tokens stay whole: text after the string is for the reader to cut.

    Raises:
        UsageError: A value is outside its range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "at least 0; 0 takes the most likely token"),
            "top_k": (self.top_k >= 0, "at least 0; 0 keeps all tokens"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]; 1 keeps all tokens"),
            "stop_strings": (all(self.stop_strings), "not empty, each of them"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UsageError(f"{name}: {getattr(self, name)}: must be {rule}.")

    @property
    def log_prob_temperature(self) -> float:
        """What logits are divided by before log-probabilities are taken."""
        return self.temperature or 1.0


@dataclass(frozen=True)
class Prompt:
    """One prompt and how often to continue it.

    Attributes:
        ids: Tokens, at least one.
        num_samples: Completions, numbered from `first_sample`.
        seed: Sample j draws from numbers keyed by (seed, j).
        first_sample: Above 0 where samples of the prompt are there already.
        expected_new_tokens: Of one completion; shares the work among data-parallel ranks. None: the most there can be.
    """

    ids: tuple[int, ...]
    num_samples: int = 1
    seed: int = 0
    expected_new_tokens: int | None = None
    first_sample: int = 0


def check_prompts(prompts: Sequence[Prompt], *, vocab_size: int) -> None:
    """Raises UsageError for the first prompt that no engine could continue."""
    for index, prompt in enumerate(prompts):
        if not prompt.ids or not 0 <= min(prompt.ids) <= max(prompt.ids) < vocab_size:
            raise UsageError(
                f"prompt {index}: {len(prompt.ids):,} tokens: it needs at least one, all ids in [0, {vocab_size})."
            )
        if prompt.num_samples < 1:
            raise UsageError(f"prompt {index}: num_samples: {prompt.num_samples}: must be at least 1.")


Finish = Literal["stop", "length"]
"""Why a completion ended: by the model (a stop id, a stop string), or by its limit (`max_new_tokens`, the context)."""


@dataclass(frozen=True)
class Completion:
    """One sample.

    Attributes:
        prompt_index: Into the prompts of the call.
        sample_index: From the prompt's `first_sample`, one of `num_samples`.
        token_ids: The new tokens, at least one, the one that stopped it included.
        log_probs: Of each of them, in nats; see the module's first lines.
        finish: Why it ended.
        policy_version: Of the weights that it was sampled from.
    """

    prompt_index: int
    sample_index: int
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish: Finish
    policy_version: int


@dataclass(frozen=True)
class Health:
    """What an engine holds and has done since it was made.

    Attributes:
        policy_version: Of the weights that it samples from now.
        num_slots: Samples that it advances at once.
        cache_bytes: Of this rank's caches.
        prompt_tokens: Read, of shared prompts once.
        sampled_tokens: Of finished and unfinished completions.
        decode_steps: Passes through the model that advanced all slots in use by one token.
    """

    policy_version: int
    num_slots: int
    cache_bytes: int
    prompt_tokens: int
    sampled_tokens: int
    decode_steps: int


class RolloutEngine(Protocol):
    """Samples completions from a policy."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        on_finished: Callable[[Completion], None] | None = None,
    ) -> list[Completion]:
        """Samples every completion of this data-parallel rank's share of `prompts`.

        All ranks must call this, with the same arguments: each takes the prompts that
        `share.share_prompts` gives it. Tensor-parallel ranks return the same completions.

        Args:
            prompts: Of all ranks.
            sampling: How tokens are chosen.
            on_finished: Called with each completion as it ends, while others go on.

        Returns:
            This rank's completions by (prompt index, sample index).

        Raises:
            UsageError: A prompt is empty, holds an unknown id, or leaves no room in the context; before any sampling.
            NonFiniteLogitsError: The model gave NaN; names the prompt and the step, and holds what had finished.
        """
        ...

    def load_weights(self, *, policy_version: int) -> None:
        """Takes over the policy's present weights; must be called after every update of them.

        All ranks must call this.
        """
        ...

    def health(self) -> Health:
        """What the engine holds and has done."""
        ...
