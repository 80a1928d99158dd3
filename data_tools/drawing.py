"""Which conversations a stage reads, and when: numbers of each source in, rounds of conversations out.

| rule                | a source of C conversations that gives N                                        |
|---------------------|---------------------------------------------------------------------------------|
| without_replacement | one random order of all C after another; the first N of them                    |
| with_replacement    | N times one of all C, whatever was drawn before                                 |

The draw is dealt into rounds: as many as the source that is read most often has passes. Every source gives
each round its N / rounds, and without replacement no round holds a conversation twice, so copies of one
never share a row or stand close together. What is left of a random order at the end of a round comes in the
next; the new order then goes on, first with what this round does not hold yet.

All hangs on seed and content: names and paths change nothing, and up to N = C the other sources of the blend change
nothing of what a source gives. Above, another number of rounds may change which conversations come once more than the
others, for no round holds one twice; how many do it does not change. Up to N = C a larger N gives the same
conversations and more: "twice the data" holds the data. To read the same ones twice, repeat the rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_tools.permutation import keyed_choices, keyed_permutation

DrawRule = Literal["without_replacement", "with_replacement"]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """One source to draw from.

    Attributes:
        data_id: Identity of its content.
        size: Conversations that it has.
        count: Conversations that it gives.
    """

    data_id: str
    size: int
    count: int


@dataclass(frozen=True)
class Drawn:
    """The conversations of one round.

    Attributes:
        source: [conversations] place of each one's source among the pools.
        conversation: [conversations] its number there.
    """

    source: Ints
    conversation: Ints

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self.source)

    def take(self, order: npt.NDArray[Any]) -> Drawn:
        """Some of them, in this order."""
        return Drawn(self.source[order], self.conversation[order])


def draw(pools: Sequence[Pool], *, rule: DrawRule = "without_replacement", seed: int) -> list[Drawn]:
    """Draws the conversations of all rounds, source after source in each.

    Args:
        pools: What is drawn from; none that gives some is empty.
        rule: See the top of this file.
        seed: Of the orders.

    >>> rounds = draw([Pool("a", size=3, count=6), Pool("b", size=10, count=2)], seed=0)
    >>> [(part.source.tolist(), sorted(part.conversation[:3].tolist())) for part in rounds]
    [([0, 0, 0, 1], [0, 1, 2]), ([0, 0, 0, 1], [0, 1, 2])]
    """
    num_rounds = max((-(-pool.count // pool.size) for pool in pools if pool.count), default=0)
    dealers = [_rounds_of(pool, rule, seed, num_rounds) for pool in pools]
    rounds = []
    for parts in zip(*dealers, strict=True):
        source = np.repeat(np.arange(len(pools)), [len(part) for part in parts])
        rounds.append(Drawn(source, np.concatenate(parts)))
    return rounds


def _rounds_of(pool: Pool, rule: DrawRule, seed: int, num_rounds: int) -> Iterator[Ints]:
    """What one source gives to each round."""
    ends = [pool.count * number // num_rounds for number in range(num_rounds + 1)]
    sizes = [end - begin for begin, end in pairwise(ends)]
    if rule == "with_replacement":
        drawn = keyed_choices(pool.count, below=max(1, pool.size), key=f"draw {seed} {pool.data_id}")
        yield from (drawn[begin:end] for begin, end in pairwise(ends))
        return
    rest = np.zeros(0, np.int64)
    order = 0
    for size in sizes:
        here, rest = rest[:size], rest[size:]
        if len(here) < size:
            fresh = keyed_permutation(pool.size, key=f"draw {seed} {pool.data_id} {order}")
            order += 1
            is_new = ~np.isin(fresh, here)
            fresh = np.concatenate([fresh[is_new], fresh[~is_new]])
            missing = size - len(here)
            here, rest = np.concatenate([here, fresh[:missing]]), fresh[missing:]
        yield here
