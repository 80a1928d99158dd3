"""What an rl stage has sampled and learned from, by source and domain; rows of its ledger.

Of a ledger's row (`datasets/ledger.py`): samples are prompts drawn, `read` the tokens of prompts and completions in
packed rows, each as often as they are learned from, `masked` those of them that carry no loss, and `sampled` the tokens
of completions. A row `padding` holds the positions of rows that have no token: all `read` sum to the processed tokens.
"""

from __future__ import annotations

from typing import Any

from megatron_ext.datasets.ledger import PADDING, LedgerRow
from megatron_ext.objectives.rl import RlOptions, response_weight
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.rollout_groups import Group

_COUNTS = ("prompts", "first", "sampled", "read", "trained")


class Tally:
    """Counts of all ranks, the same on each.

    Attributes:
        processed: Positions of all rows, padding included.
    """

    def __init__(self, plan: StagePlan) -> None:
        self._plan = plan
        self.processed = 0
        self._counts: dict[str, dict[str, int]] = {}  # by "SOURCE DOMAIN"
        self._most_tokens = plan.batch.tokens_per_step // plan.batch.global_batch_size  # of a prompt
        self._size = sum(source.documents for source in plan.data.sources)

    @property
    def sampled(self) -> int:
        """Tokens of all completions."""
        return sum(counts["sampled"] for counts in self._counts.values())

    def add(self, group: Group, *, passes: int, options: RlOptions) -> None:
        """Counts one group.

        Args:
            group: As sampled.
            passes: Over its completions; 0 of groups that are replaced.
            options: Of the stage: cut-off completions may carry no loss.
        """
        source = self._plan.data.sources[group.prompt.source].source
        counts = self._counts.setdefault(f"{source} {group.prompt.row.domain}", dict.fromkeys(_COUNTS, 0))
        counts["prompts"] += 1
        counts["first"] += group.prompt.place < self._size
        for sample in group.samples:
            counts["sampled"] += sample.length
            counts["read"] += passes * (len(group.prompt.row.ids) + sample.length)
            if response_weight(sample.length, options, is_cut_off=sample.is_cut_off).counted:
                counts["trained"] += passes * sample.length

    def ledger(self, before: list[dict[str, Any]]) -> list[LedgerRow]:
        """A row a source and domain, behind those of the stages that gave the weights."""
        rows = []
        for source in self._plan.data.sources:
            domains = sorted(key.partition(" ")[2] for key in self._counts if key.partition(" ")[0] == source.source)
            for domain in domains or [source.domain]:
                counts = self._counts.get(f"{source.source} {domain}", dict.fromkeys(_COUNTS, 0))
                repeated = counts["prompts"] - counts["first"]
                rows.append(
                    LedgerRow(
                        phase=1,
                        source=source.source,
                        domain=domain,
                        data_id=source.data_id,
                        planned=source.samples * self._most_tokens,
                        read=counts["read"],
                        samples=counts["prompts"],
                        epochs=counts["prompts"] / source.documents,
                        first=None,
                        repeated=None,
                        documents_first=counts["first"],
                        documents_repeated=repeated,
                        masked=counts["read"] - counts["trained"],
                        distinct=None,
                        distinct_documents=counts["first"],
                        place=counts["prompts"],
                        sampled=counts["sampled"],
                    )
                )
        read = sum(row.read for row in rows)
        padding = self.processed - read
        return [
            *(LedgerRow(**row) for row in before),
            *rows,
            LedgerRow(1, PADDING, "", PADDING, 0, padding, padding=padding),
        ]

    def state_dict(self) -> dict[str, Any]:
        """All counts."""
        return {"processed": self.processed, "counts": {key: dict(value) for key, value in self._counts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up all counts."""
        self.processed = state["processed"]
        self._counts = {key: dict(value) for key, value in state["counts"].items()}
