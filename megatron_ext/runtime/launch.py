"""This process among the others; known before torch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass

from data_tools.errors import SetupError


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

    def require_fresh_starts(self) -> None:
        """Refuses ranks that torchrun would start again in vain.

        Its agents share one store with their ranks and keep it for every start (torch 2.13,
        elastic/rendezvous/dynamic_rendezvous.py, static_tcp_rendezvous.py): ranks find the addresses of the start
        before, where nobody listens, and an agent that replaces a lost one never learns where the store is.

        Raises:
            SetupError: There are several ranks, restarts, and such a store.
        """
        restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
        is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if self.world_size > 1 and is_shared and restarts != "0":
            raise SetupError(
                f"torchrun --max-restarts={restarts}: ranks that are started again would not find each other, for "
                "they would meet where those before them met. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where each "
                "torchrun is started, with --rdzv-backend=c10d or --standalone, or leave --max-restarts out."
            )
