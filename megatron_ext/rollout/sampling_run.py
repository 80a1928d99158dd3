"""One call of the in-process engine: from prompts to completions.

Slots in use are the first n. A step takes n tokens, appends them to n cached texts, and chooses the next n from n
rows of logits; then finished samples leave, waiting ones enter, and the last ones move into holes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from data_tools.errors import TrainingError
from megatron_ext.rollout.cache import RolloutCache
from megatron_ext.rollout.choose import Chosen, choose_tokens
from megatron_ext.rollout.forward import CachedForward
from megatron_ext.rollout.keyed_random import stream_key, uniforms
from megatron_ext.rollout.protocol import Completion, Prompt, Sampling
from megatron_ext.rollout.stop_strings import StopStrings
from megatron_ext.rollout.waiting import Sample, WaitingSamples


class NonFiniteLogitsError(TrainingError):
    """The model gave logits that are not finite.

    Attributes:
        sample: Whose.
        step: Number of the new token, from 0, that could not be chosen.
        completions: What this rank had finished before.
    """

    def __init__(self, sample: Sample, step: int, completions: list[Completion], *, policy_version: int) -> None:
        super().__init__(
            f"prompt {sample.prompt_index}, sample {sample.sample_index}, new token {step}: the model's logits are "
            f"not finite (policy version {policy_version}); {len(completions)} completions had finished and are kept.\n"
            "  Look at the loss and gradient norm of the last updates, then go on from a checkpoint before them with "
            "a lower learning rate or tighter clipping."
        )
        self.sample, self.step, self.completions = sample, step, completions


class _ReadPrompts(NamedTuple):
    """Prompts of one length that have been read."""

    cache: RolloutCache
    logits: Tensor  # [prompts, padded vocabulary]
    rows: Mapping[int, int]  # by prompt index


class SamplingRun:
    """The state of one call.

    Args:
        forward: The model over caches.
        cache: The slots; whatever they hold is overwritten.
        prompts: Of this rank, by index.
        sampling: How tokens are chosen.
        vocab_size: Ids of the tokenizer.
        tokens_per_slot: Of prompt and completion together.
        stop_strings: None without a tokenizer.
        policy_version: Of the weights.
        on_finished: Called with each completion as it ends.

    Attributes:
        prompt_tokens: Read so far, of shared prompts once.
        sampled_tokens: So far.
        decode_steps: So far.
    """

    def __init__(
        self,
        forward: CachedForward,
        cache: RolloutCache,
        prompts: Mapping[int, Prompt],
        sampling: Sampling,
        *,
        vocab_size: int,
        tokens_per_slot: int,
        stop_strings: StopStrings | None,
        policy_version: int,
        on_finished: Callable[[Completion], None] | None,
    ) -> None:
        self._forward, self._cache, self._prompts, self._sampling = forward, cache, prompts, sampling
        self._vocab_size, self._tokens_per_slot = vocab_size, tokens_per_slot
        self._stop_strings = stop_strings
        self._policy_version, self._on_finished = policy_version, on_finished
        self._device = cache.lengths.device
        self._waiting = WaitingSamples(prompts)
        self._read: _ReadPrompts | None = None
        self._finished: dict[Sample, Completion] = {}
        self.prompt_tokens = self.sampled_tokens = self.decode_steps = 0

        num_slots = len(cache.lengths)
        most = min(sampling.max_new_tokens, tokens_per_slot)
        self._samples: list[Sample | None] = [None] * num_slots
        self._lengths = np.zeros(num_slots, np.int64)  # tokens read into the cache
        self._counts = np.zeros(num_slots, np.int64)  # new tokens
        self._limits = np.zeros(num_slots, np.int64)  # of new tokens
        self._keys = np.zeros(num_slots, np.uint64)
        self._tokens = np.zeros((num_slots, most), np.int64)
        self._log_probs = np.zeros((num_slots, most), np.float32)
        self._of_slots = (self._lengths, self._counts, self._limits, self._keys, self._tokens, self._log_probs)
        self._stops = np.isin(np.arange(vocab_size), sorted(sampling.stop_ids))
        self._has_left = False  # a sample, since the slots were filled

    def finish(self) -> list[Completion]:
        """Samples until nothing waits.

        Returns:
            Completions by (prompt index, sample index).

        Raises:
            NonFiniteLogitsError: Holds what had finished; the slots are cleared.
        """
        num_used = 0
        while self._waiting or num_used:
            if self._has_left or not num_used:
                self._fill_slots()
                num_used = self._close_holes()
                self._has_left = False
            if num_used:
                self._advance(num_used)
        return self._completions()

    def _completions(self) -> list[Completion]:
        return [self._finished[sample] for sample in sorted(self._finished)]

    def _fill_slots(self) -> None:
        while self._waiting and None in self._samples:
            free = [slot for slot, sample in enumerate(self._samples) if sample is None]
            samples = self._waiting.take(len(free), read=self._read.rows if self._read else ())
            slots = free[: len(samples)]
            read = self._read or self._read_prompts(list(dict.fromkeys(sample.prompt_index for sample in samples)))
            rows = [read.rows[sample.prompt_index] for sample in samples]
            length = len(self._prompts[samples[0].prompt_index].ids)
            self._cache.copy(read.cache, rows, slots, length=length)
            for slot, sample in zip(slots, samples, strict=True):
                self._samples[slot] = sample
                self._keys[slot] = stream_key(self._prompts[sample.prompt_index].seed, sample.sample_index)
            self._lengths[slots], self._counts[slots] = length, 0
            self._limits[slots] = min(self._sampling.max_new_tokens, self._tokens_per_slot - length)
            self._choose(np.array(slots), read.logits[rows])
            self._read = read if self._waiting.next_is_of(read.rows) else None

    def _read_prompts(self, indices: list[int]) -> _ReadPrompts:
        """Reads prompts of one length."""
        tokens = torch.tensor([self._prompts[index].ids for index in indices], device=self._device)
        cache = RolloutCache(self._forward.model, num_slots=len(indices), tokens_per_slot=tokens.shape[1])
        logits = self._forward.read_prompts(tokens, cache)
        self.prompt_tokens += tokens.numel()
        return _ReadPrompts(cache, logits, {index: row for row, index in enumerate(indices)})

    def _close_holes(self) -> int:
        """Moves the last samples into free slots before them; returns the number of slots in use."""
        used = [slot for slot, sample in enumerate(self._samples) if sample is not None]
        sources = [slot for slot in used if slot >= len(used)]
        targets = [slot for slot in range(len(used)) if self._samples[slot] is None]
        if sources:
            self._cache.copy(self._cache, sources, targets, length=int(self._lengths[sources].max()))
            for values in self._of_slots:
                values[targets] = values[sources]
            for source, target in zip(sources, targets, strict=True):
                self._samples[target], self._samples[source] = self._samples[source], None
        return len(used)

    def _advance(self, num_used: int) -> None:
        """Appends the last chosen token of every sample, and chooses the next."""
        slots = np.arange(num_used)
        last = torch.from_numpy(self._tokens[slots, self._counts[:num_used] - 1]).to(self._device)
        lengths = self._lengths[:num_used]
        logits = self._forward.decode(last, self._cache, shortest=int(lengths.min()), longest=int(lengths.max()))
        self._lengths[:num_used] += 1
        self.decode_steps += 1
        self._choose(slots, logits)

    def _choose(self, slots: NDArray[np.int64], logits: Tensor) -> None:
        """Chooses a token for each slot from its row of logits; those that are finished leave."""
        steps = self._counts[slots]
        drawn = torch.from_numpy(uniforms(self._keys[slots], steps.astype(np.uint64))).to(self._device)
        chosen = choose_tokens(logits, drawn, self._sampling, vocab_size=self._vocab_size)
        if self._forward.tp_group.size() > 1:  # ranks that went apart by a rounding would wait for each other
            both = torch.stack([chosen.tokens.double(), chosen.log_probs.double()])
            dist.broadcast(both, group_src=0, group=self._forward.tp_group)
            chosen = Chosen(both[0].long(), both[1])
        tokens, log_probs = chosen.tokens.cpu().numpy(), chosen.log_probs.cpu().numpy()
        if not np.isfinite(log_probs).all():
            self._refuse(slots[~np.isfinite(log_probs)][0])
        self._tokens[slots, steps], self._log_probs[slots, steps] = tokens, log_probs
        self._counts[slots] += 1
        self.sampled_tokens += len(slots)
        stopped = self._stops[tokens]
        if self._stop_strings is not None and self._sampling.stop_strings:
            stopped |= [self._stop_strings.are_in(self._tokens[slot, : self._counts[slot]].tolist()) for slot in slots]
        for row in np.flatnonzero(stopped | (self._counts[slots] == self._limits[slots])):
            self._leave(slots[row], has_stopped=bool(stopped[row]))

    def _leave(self, slot: int, *, has_stopped: bool) -> None:
        sample, count = self._samples[slot], self._counts[slot]
        assert sample is not None, f"slot {slot} holds no sample"
        self._samples[slot], self._has_left = None, True
        completion = Completion(
            prompt_index=sample.prompt_index,
            sample_index=sample.sample_index,
            token_ids=tuple(self._tokens[slot, :count].tolist()),
            log_probs=tuple(self._log_probs[slot, :count].tolist()),
            finish="stop" if has_stopped else "length",
            policy_version=self._policy_version,
        )
        self._finished[sample] = completion
        if self._on_finished is not None:
            self._on_finished(completion)

    def _refuse(self, slot: int) -> None:
        sample = self._samples[slot]
        assert sample is not None, f"slot {slot} holds no sample"
        self._cache.clear()
        raise NonFiniteLogitsError(
            sample, int(self._counts[slot]), self._completions(), policy_version=self._policy_version
        )
