"""Groups of completions as updates: packed rows with the log-probabilities of every policy that the loss compares.

Those of the policy that sampled are computed again by the training path, those of the reference by a frozen copy of
the first weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module

from data_tools.errors import TrainingError
from megatron_ext.datasets.batch import rows_of_rank
from megatron_ext.datasets.rollout_batch import RolloutBatch
from megatron_ext.objectives.rl import RlOptions
from megatron_ext.objectives.token_log_probs import TokenScores
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.microbatches import run_schedule
from megatron_ext.training.rollout_groups import Group
from megatron_ext.training.rollout_rows import PADDING, make_row, pack_pieces, pieces_of


class UpdateMaker:
    """Packs completions and scores them again.

    Args:
        plan: The stage, of kind rl.
        model: The policy, wrapped for training.
        groups: Process groups.
        reference: The frozen model, into which `load_reference` puts its weights; None where KL weighs nothing.
        options: Of the loss.
    """

    def __init__(
        self,
        plan: StagePlan,
        model: Any,
        groups: ProcessGroupCollection,
        *,
        reference: Any | None,
        options: RlOptions,
    ) -> None:
        assert plan.rl is not None, "completions are learned from in an rl stage"
        self._plan, self._rl, self._groups = plan, plan.rl.options, groups
        self._model, self._reference, self._options = model, reference, options

    def load_reference(self, load: Callable[[Any], None]) -> None:
        """Puts the first weights into the frozen model, in the precision in which the policy trains.

        All ranks must call this.

        Args:
            load: Loads them into a model that is not wrapped.
        """
        if self._reference is None:
            return
        load(self._reference)
        if self._plan.precision == "bf16":
            self._reference = Float16Module(self._reference.config, self._reference)
        self._reference.eval()

    def make(self, groups: Sequence[Group], *, step: int) -> list[tuple[int, tuple[RolloutBatch, ...]]]:
        """Of each mini-batch its processed tokens on all ranks, and this rank's microbatches.

        All ranks must call this.

        Args:
            groups: Of a step, in the order in which their prompts were drawn.
            step: Its number, for messages.

        Raises:
            TrainingError: Nothing is left to learn from.
        """
        size = self._rl.mini_batch_prompts or len(groups)
        parts = [groups[first : first + size] for first in range(0, len(groups), size)]
        for part in parts:
            self._require_weight(part, step)
        return [self._rows(part) for part in parts]

    def _rows(self, groups: Sequence[Group]) -> tuple[int, tuple[RolloutBatch, ...]]:
        """Processed tokens of an update, and this rank's microbatches with all their log-probabilities."""
        length, ranks = self._plan.batch.sequence_length, self._groups.dp.size()
        rows = pack_pieces(pieces_of(groups), length)
        numbers = [
            place
            for (place,) in rows_of_rank(
                num_microbatches=-(-len(rows) // ranks),
                micro_batch_size=1,
                data_parallel_rank=self._groups.dp.rank(),
                data_parallel_size=ranks,
            )
        ]
        batches = [
            make_row(
                rows[number] if number < len(rows) else [],
                length=length,
                eod_id=self._plan.data.eod_id,
                options=self._options,
                sample_id=f"prompts:{groups[0].prompt.place}:{number}" if number < len(rows) else PADDING,
            )
            for number in numbers
        ]
        old = self._scores_of(self._model, batches)
        reference = self._scores_of(self._reference, batches) if self._reference is not None else [None] * len(batches)
        return len(rows) * length, tuple(
            replace(batch, old_log_probs=mine, reference_log_probs=other)
            for batch, mine, other in zip(batches, old, reference, strict=True)
        )

    def _require_weight(self, groups: Sequence[Group], step: int) -> None:
        if self._rl.overlong == "mask" and all(sample.is_cut_off for group in groups for sample in group.samples):
            raise TrainingError(
                f"step {step}: all completions of an update were cut at rl.max_new_tokens "
                f"{self._rl.max_new_tokens:,}, and rl.overlong mask leaves nothing to learn from; raise that, or write "
                "keep"
            )

    def _scores_of(self, model: Any, batches: Sequence[RolloutBatch]) -> list[torch.Tensor]:
        """Log-probabilities of the labels of some rows, `[1, s]` each, by the training path, without a gradient."""
        scores = TokenScores(temperature=self._rl.temperature, tp_group=self._groups.tp)
        was_training = model.training
        model.eval()
        with torch.no_grad():
            found = run_schedule(model, scores, batches, groups=self._groups, forward_only=True)
        model.train(was_training)
        return [of_row.cpu() for of_row in found]
