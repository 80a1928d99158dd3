"""This process among the others; known before torch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """What torchrun tells a process; one rank when there is no torchrun."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> Launch:
        """Reads RANK, LOCAL_RANK and WORLD_SIZE."""
        read = os.environ.get
        return cls(
            rank=int(read("RANK", "0")),
            local_rank=int(read("LOCAL_RANK", "0")),
            world_size=int(read("WORLD_SIZE", "1")),
        )

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0
