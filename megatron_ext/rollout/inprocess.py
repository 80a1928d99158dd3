"""The engine that samples with the training model itself, through caches.

Continuous batching: a finished sample leaves its slot, a waiting one enters. Prompts are read in groups of equal
length, so that no padding ever reaches a convolution or a state, and copied into slots: samples of one prompt share
one reading. Weights are the training model's own, so both log-probabilities come from the same numbers; where it has
Transformer Engine's layers, the local backend's decode with the same parameters (`twin.py`).

Where requests are served beside training, or the policy spans pipeline stages, another engine has to stand behind the
same protocol. Why it is not core's: `docs/explanation/decisions/0008-te-samples-through-a-twin.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import SetupError, UsageError
from megatron_ext.plan.rollout import rollout_problems
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.cache import RolloutCache
from megatron_ext.rollout.forward import CachedForward
from megatron_ext.rollout.graphed import GraphedForward
from megatron_ext.rollout.protocol import Completion, Health, Prompt, Sampling, check_prompts
from megatron_ext.rollout.sampling_run import SamplingRun
from megatron_ext.rollout.share import share_prompts
from megatron_ext.rollout.stop_strings import Decode, StopStrings
from megatron_ext.rollout.twin import decodable


class InProcessEngine:
    """A `RolloutEngine` on either backend.

    Args:
        model: The policy, wrapped for training or not; it is not changed.
        plan: The plan that built it.
        groups: Process groups; `tp` ranks sample one text together, `dp` ranks share the prompts.
        num_slots: Samples that a data-parallel rank advances at once.
        tokens_per_slot: Of prompt and completion together; a completion that reaches it ends with `length`.
        decode: Turns ids into text; needed for stop strings.

    Raises:
        SetupError: The layout has no cached decoding.
    """

    def __init__(
        self,
        model: Any,
        plan: StagePlan,
        groups: ProcessGroupCollection,
        *,
        num_slots: int,
        tokens_per_slot: int,
        decode: Decode | None = None,
    ) -> None:
        _check_setting(plan, num_slots=num_slots, tokens_per_slot=tokens_per_slot)
        self._model = decodable(unwrapped(model), plan)
        self._vocab_size = plan.data.tokenizer_vocab_size
        self._groups, self._decode, self._has_graphs = groups, decode, plan.has_sampling_graphs
        self._num_slots, self._tokens_per_slot = num_slots, tokens_per_slot
        self._cache = RolloutCache(self._model, num_slots=num_slots, tokens_per_slot=tokens_per_slot)
        self._forward = CachedForward(self._model, max_tokens=tokens_per_slot)
        self._policy_version = self._prompt_tokens = self._sampled_tokens = self._decode_steps = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        on_finished: Callable[[Completion], None] | None = None,
    ) -> list[Completion]:
        """Samples this data-parallel rank's share; see `RolloutEngine.generate`."""
        self._check(prompts, sampling)
        shares = share_prompts(prompts, self._groups.dp.size(), max_new_tokens=sampling.max_new_tokens)
        forward = self._forward
        if self._has_graphs:
            forward = GraphedForward(forward, self._cache, max_tokens=self._tokens_per_slot)
        run = SamplingRun(
            forward,
            self._cache,
            {index: prompts[index] for index in shares[self._groups.dp.rank()]},
            sampling,
            vocab_size=self._vocab_size,
            tokens_per_slot=self._tokens_per_slot,
            stop_strings=StopStrings(sampling.stop_strings, self._decode) if self._decode else None,
            policy_version=self._policy_version,
            on_finished=on_finished,
        )
        try:
            return run.finish()
        finally:
            self._prompt_tokens += run.prompt_tokens
            self._sampled_tokens += run.sampled_tokens
            self._decode_steps += run.decode_steps

    def load_weights(self, *, policy_version: int) -> None:
        """Counts the weights as `policy_version`: they are the training model's own, and nothing of them is kept."""
        self._policy_version = policy_version

    def health(self) -> Health:
        """What the engine holds and has done."""
        return Health(
            policy_version=self._policy_version,
            num_slots=self._num_slots,
            cache_bytes=self._cache.num_bytes,
            prompt_tokens=self._prompt_tokens,
            sampled_tokens=self._sampled_tokens,
            decode_steps=self._decode_steps,
        )

    def _check(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        check_prompts(prompts, vocab_size=self._vocab_size)
        for index, prompt in enumerate(prompts):
            if len(prompt.ids) >= self._tokens_per_slot:
                raise UsageError(
                    f"prompt {index}: {len(prompt.ids):,} tokens leave no room for a new one among the "
                    f"{self._tokens_per_slot:,} of a slot; shorten or drop it, or raise the tokens of a slot."
                )
        if sampling.stop_strings and self._decode is None:
            raise UsageError(
                f"stop_strings: {sampling.stop_strings}: the engine needs the tokenizer's `decode` for them."
            )


def unwrapped(model: Any) -> HybridModel:
    """The model inside core's wrappers of data parallelism and half precision."""
    while not isinstance(model, HybridModel):
        model = model.module
    return model


def _check_setting(plan: StagePlan, *, num_slots: int, tokens_per_slot: int) -> None:
    if problems := rollout_problems(plan.layout):
        raise SetupError("\n".join(problems))
    if num_slots < 1 or tokens_per_slot < 2:
        raise UsageError(
            f"num_slots: {num_slots}, tokens_per_slot: {tokens_per_slot}: at least 1 slot, of at least 2 tokens."
        )
