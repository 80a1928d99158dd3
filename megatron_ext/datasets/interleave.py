"""Which source gives the next sample of a blend: the earliest deadline first.

Source i is planned to give n_i of the stage's N samples, so after t samples its ideal count is
t * n_i / N, in whole-number arithmetic throughout. Its j-th sample (j from 0)

- may not come before slot  floor(j * N / n_i)            or the count would run one ahead,
- must come by slot         ceil((j + 1) * N / n_i) - 1   or it would fall one behind;

of the sources that may, the one whose slot runs out first is taken. Then at every prefix of the
run every count is off its ideal by less than one sample, and at the end it is n_i exactly. The
choice depends on the counts alone, so the counts are the whole state.

Source: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980) 323-330;
the windows are those of proportionate fairness, S. Baruah et al., Algorithmica 15 (1996) 600-625.
Megatron-Core's blending (`helpers.cpp`, largest deficit first) is off by up to 1.7 samples at
some prefixes by our measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


class Interleaver:
    """Deals the slots of a stage to its sources."""

    def __init__(self, planned: Sequence[int], *, counts: Sequence[int] | None = None) -> None:
        """Takes up the dealing where `counts` left it.

        Args:
            planned: Samples that each source gives to the stage; zeros are allowed.
            counts: Samples that each source has given; None starts the stage.

        Raises:
            ValueError: If `counts` cannot have come from this dealing.
        """
        self._planned = tuple(planned)
        self._total = sum(self._planned)
        self._counts = [0] * len(self._planned) if counts is None else list(counts)
        self._refuse_strange_counts()
        slot = sum(self._counts)
        self._ready: list[tuple[int, int]] = []  # (deadline, source)
        self._waiting: list[tuple[int, int]] = []  # (release, source)
        for source, (count, share) in enumerate(zip(self._counts, self._planned, strict=True)):
            if count == share:
                continue
            release = count * self._total // share
            if release <= slot:
                self._ready.append((self._deadline(source), source))
            else:
                self._waiting.append((release, source))
        heapify(self._ready)
        heapify(self._waiting)

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples that each source has given."""
        return tuple(self._counts)

    def take(self, num_slots: int) -> list[int]:
        """Deals the next slots; the source of each, in order.

        Args:
            num_slots: At most the samples that are left of the plan.
        """
        counts, planned, total = self._counts, self._planned, self._total
        ready, waiting = self._ready, self._waiting
        dealt_before = sum(counts)
        assert dealt_before + num_slots <= total, f"{num_slots} slots asked, {total - dealt_before} are left"
        dealt = []
        for next_slot in range(dealt_before + 1, dealt_before + num_slots + 1):
            source = heappop(ready)[1]
            dealt.append(source)
            counts[source] += 1
            count, share = counts[source], planned[source]
            if count < share:
                release = count * total // share
                if release <= next_slot:
                    heappush(ready, (self._deadline(source), source))
                else:
                    heappush(waiting, (release, source))
            while waiting and waiting[0][0] <= next_slot:
                released = heappop(waiting)[1]
                heappush(ready, (self._deadline(released), released))
        return dealt

    def _deadline(self, source: int) -> int:
        """The slot before which the source's next sample must be dealt."""
        return -(-(self._counts[source] + 1) * self._total // self._planned[source])

    def _refuse_strange_counts(self) -> None:
        if len(self._counts) != len(self._planned):
            raise ValueError(f"{len(self._counts)} counts for {len(self._planned)} sources")
        slot = sum(self._counts)
        for source, (count, share) in enumerate(zip(self._counts, self._planned, strict=True)):
            off = abs(count * self._total - share * slot)
            if not 0 <= count <= share or (off >= self._total and off > 0):
                raise ValueError(f"source {source} gave {count} of {share} samples at sample {slot} of {self._total}")
