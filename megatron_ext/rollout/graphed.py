"""Decoding whose kernels are launched as one CUDA graph, for a GPU that waits for Python at every token.

A graph repeats the same kernels on the same memory. So it serves the steps in which every slot is in use, attends over
whole slots instead of the longest text, and hides what a text does not have behind its bias. Steps with fewer texts,
the last of a call, go the usual way.

The first full steps run as usual but in the shapes of the graph: Triton chooses its kernels, libraries take their
workspaces. Capturing then launches nothing, so no state moves. A graph lives for one call of the engine: within it the
weights stay, and what was prepared of them (`CachedForward._take_weights`) is held as long as the graph.

**No GPU has run it yet.** On a CPU `capture` gives back the call itself, by which the rest is tested.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_ext.rollout.cache import RolloutCache
from megatron_ext.rollout.forward import CachedForward
from megatron_ext.runtime.device import capture

WARMUP_STEPS = 2


class GraphedForward(CachedForward):
    """A `CachedForward` over one cache; for one call of the engine.

    Args:
        forward: Whose model and tables are taken.
        cache: Whose full steps are captured.
        max_tokens: Of a slot.

    Attributes:
        replayed: Steps that went through the graph.
    """

    def __init__(self, forward: CachedForward, cache: RolloutCache, *, max_tokens: int) -> None:
        super().__init__(forward.model, max_tokens=max_tokens)
        self._full, self._max_tokens = cache, max_tokens
        self._new = torch.zeros_like(cache.lengths)  # the graph reads its tokens here
        self._warm = self.replayed = 0
        self._replay: Callable[[], Tensor] | None = None
        self._held: object = None

    def decode(self, tokens: Tensor, cache: RolloutCache, *, shortest: int, longest: int) -> Tensor:
        """As `CachedForward.decode`; the logits of a full step are overwritten by the next one's."""
        if cache is not self._full or len(tokens) < len(self._new):
            return super().decode(tokens, cache, shortest=shortest, longest=longest)
        self._new.copy_(tokens)
        if self._warm < WARMUP_STEPS:
            self._warm += 1
            return self._whole_slots()
        if self._replay is None:
            self._held = self._steps  # what the graph reads of the weights must not be freed before it
            self._replay = capture(self._whole_slots)
        self.replayed += 1
        return self._replay()

    def _whole_slots(self) -> Tensor:
        """A step whose shapes hang on no text: as if one were empty and one full."""
        return super().decode(self._new, self._full, shortest=-1, longest=self._max_tokens - 1)
