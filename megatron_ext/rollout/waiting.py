"""Samples that wait for a slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import NamedTuple

from megatron_ext.plan.rollout import PROMPT_TOKENS
from megatron_ext.rollout.protocol import Prompt


class Sample(NamedTuple):
    """One completion to be made."""

    prompt_index: int
    sample_index: int


class WaitingSamples:
    """A queue in which prompts of one length stand together, longest first, and a prompt's samples side by side.

    Args:
        prompts: By their index in the call.
    """

    def __init__(self, prompts: Mapping[int, Prompt]) -> None:
        self._prompts = prompts
        order = sorted(prompts, key=lambda index: (-len(prompts[index].ids), index))
        self._queue = deque(
            Sample(index, prompts[index].first_sample + j) for index in order for j in range(prompts[index].num_samples)
        )

    def __len__(self) -> int:
        return len(self._queue)

    def next_is_of(self, prompts: Collection[int]) -> bool:
        """Whether the first sample that waits belongs to one of these prompts."""
        return bool(self._queue) and self._queue[0].prompt_index in prompts

    def take(self, most: int, *, read: Collection[int] = ()) -> list[Sample]:
        """Removes the next samples, whose prompts have been read or can be read in one pass.

        Args:
            most: Samples at most, at least 1.
            read: Prompts that have been read; if the next sample is of one of them, only such samples are taken.

        Returns:
            At least one, of prompts of one length; prompts not read hold no more than `PROMPT_TOKENS` tokens.
        """
        length = len(self._prompts[self._queue[0].prompt_index].ids)
        is_read = self.next_is_of(read)
        taken: list[Sample] = []
        prompts: set[int] = set()
        while self._queue and len(taken) < most:
            index = self._queue[0].prompt_index
            fits = index in read if is_read else len(prompts | {index}) <= max(1, PROMPT_TOKENS // length)
            if len(self._prompts[index].ids) != length or not fits:
                break
            prompts.add(index)
            taken.append(self._queue.popleft())
        return taken
