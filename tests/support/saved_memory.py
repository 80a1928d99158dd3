"""Bytes that autograd holds for the backward pass, as `saved_tensors_hooks` sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor


class SavedMemory(torch.autograd.graph.saved_tensors_hooks):
    """Counts the storages that are saved at a time, each once; parameters are not counted.

    Attributes:
        held: Bytes held now.
        peak: The most that were held at a time.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(self._pack, _unpack)
        self.held = self.peak = 0
        self._uncounted = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._users: Counter[int] = Counter()

    def _pack(self, tensor: Tensor) -> Tensor | _Held:
        if tensor.untyped_storage().data_ptr() in self._uncounted:
            return tensor
        return _Held(self, tensor)

    def change(self, tensor: Tensor, by: int) -> None:
        """Counts one more (1) or one less (-1) user of a tensor's storage."""
        storage = tensor.untyped_storage()
        users = self._users[storage.data_ptr()] = self._users[storage.data_ptr()] + by
        if users == max(by, 0):
            self.held += by * storage.nbytes()
            self.peak = max(self.peak, self.held)


class _Held:
    """A saved tensor, until its graph lets go of it."""

    def __init__(self, memory: SavedMemory, tensor: Tensor) -> None:
        self.memory, self.tensor = memory, tensor
        memory.change(tensor, 1)

    def __del__(self) -> None:
        self.memory.change(self.tensor, -1)


def _unpack(saved: Tensor | _Held) -> Tensor:
    return saved.tensor if isinstance(saved, _Held) else saved
