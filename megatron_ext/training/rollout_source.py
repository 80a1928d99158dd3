"""The one back-edge: batches of completions that the policy in training has just sampled.

A step begins with the policy's present weights: prompts are drawn, sampled and rewarded (`rollout_sampler.py`), groups
get their advantages, and prompts with completions are packed into rows and scored again by the training path
(`rollout_updates.py`). All ranks hold all completions, so advantages and rows are the same in every layout. What the
sampler and the trainer see differently is measured before anything is learned.

`next_step` then gives one update's microbatches at a time: the prompts of a mini-batch, in the order in which they were
drawn, as often as `rl.epochs` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import DataError, UserError
from megatron_ext.datasets.documents import Span
from megatron_ext.datasets.prompts import PromptCursor, planned_prompts
from megatron_ext.datasets.rollout_batch import RolloutBatch
from megatron_ext.datasets.rollout_file import write_rollouts
from megatron_ext.plan.rl_batch import MOST_REFILLS
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.agreement import raise_on_all_ranks
from megatron_ext.training.mismatch import measure_mismatch, require_agreement
from megatron_ext.training.rl_options import rl_options
from megatron_ext.training.rollout_groups import Group, choose_groups, facts_of, make_groups
from megatron_ext.training.rollout_sampler import RolloutSampler
from megatron_ext.training.rollout_tally import Tally
from megatron_ext.training.rollout_updates import UpdateMaker

_STATE_VERSION = 1


class RolloutSource:
    """Samples, rewards and packs; stands where a cursor stands in other stages.

    Attributes:
        facts: What there is to log of the newest step.
        prompts: Of the plan.
        is_unchanged: Whether the newest step ended with an error before anything was learned: this stands behind the
            step before it again.
    """

    def __init__(
        self,
        plan: StagePlan,
        model: Any,
        groups: ProcessGroupCollection,
        *,
        reference: Any | None = None,
        folder: Path | None = None,
    ) -> None:
        """Opens the prompts and stands before the first step.

        All ranks must call this.

        Args:
            plan: The stage, of kind rl.
            model: The policy, wrapped for training.
            groups: Process groups.
            reference: The frozen model, into which `load_reference` puts its weights; None where KL weighs nothing.
            folder: Of the stage, where completions are kept; None keeps none.

        Raises:
            DataError: The prompts are not those of the plan.
        """
        assert plan.rl is not None, "completions are sampled by an rl stage"
        self._plan, self._rl, self._groups, self._folder = plan, plan.rl.options, groups, folder
        self._options = rl_options(self._rl)
        self.prompts = planned_prompts(plan)
        self._cursor = PromptCursor(plan, self.prompts)
        self._sampler = RolloutSampler(plan, self.prompts, model, groups, folder=folder)
        self._updates_of = UpdateMaker(plan, model, groups, reference=reference, options=self._options)
        self._updates: list[tuple[int, tuple[RolloutBatch, ...]]] = []
        self.steps_begun, self.is_unchanged = 0, False
        self.tally = Tally(plan)
        self.before: list[dict[str, Any]] = []  # ledger of the stages behind the weights, a row a source
        self.facts: dict[str, Any] = {}

    def close(self) -> None:
        """Ends the workers."""
        self._sampler.close()

    def load_reference(self, load: Callable[[Any], None]) -> None:
        """Puts the first weights into the frozen model; see `UpdateMaker.load_reference`."""
        self._updates_of.load_reference(load)

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one step."""
        step = self._plan.batch.global_batch_size
        return step // (self._rl.mini_batch_prompts or step) * self._rl.epochs

    @property
    def consumed_samples(self) -> int:
        """Prompts of the steps begun; those that dynamic sampling replaced are not counted."""
        return self.steps_begun * self._plan.batch.global_batch_size

    @property
    def consumed_tokens(self) -> int:
        """Processed tokens of the updates given, of all ranks, padding included."""
        return self.tally.processed

    @property
    def sampled_tokens(self) -> int:
        """Tokens of all completions so far, of all ranks."""
        return self.tally.sampled

    def begin_anew(self, *, ledger: Sequence[dict[str, Any]]) -> None:
        """Keeps for the ledger what the stages behind the weights have read.

        Args:
            ledger: A row a source (`ledger.sum_anew`).
        """
        self.before = list(ledger)

    def next_step(self) -> tuple[RolloutBatch, ...]:
        """This rank's microbatches of the next update; where a step's are used up, a new one is sampled.

        All ranks must call this.

        Raises:
            DataError: The permitted passes over the prompts are used up.
            TrainingError: Sampler and trainer disagree, a scorer raises, or nothing is left to learn from.
        """
        if not self._updates:
            behind = self.state_dict()
            try:
                self._begin_step()
            except UserError:
                self.load_state_dict(behind)
                self.is_unchanged = True
                raise
        tokens, batches = self._updates.pop(0)
        self.tally.processed += tokens
        return batches

    def _begin_step(self) -> None:
        began = time.perf_counter()
        self._sampler.take_weights(step=self.steps_begun)
        groups, replaced = self._collect(self._plan.batch.global_batch_size)
        sampled_s = time.perf_counter() - began
        self.steps_begun += 1
        self._keep(groups, replaced)
        updates = self._updates_of.make(groups, step=self.steps_begun)
        mismatch = measure_mismatch([batch for _, batches in updates for batch in batches], self._groups)
        require_agreement(mismatch, self._rl.mismatch_threshold, step=self.steps_begun)
        self._updates = updates * self._rl.epochs
        for some, passes in ((groups, self._rl.epochs), (replaced, 0)):
            for group in some:
                self.tally.add(group, passes=passes, options=self._options)
        self._sampler.note_lengths(groups)
        self.facts = self._facts_of_step(groups, replaced, sampled_s)

    def _collect(self, count: int) -> tuple[list[Group], list[Group]]:
        """The groups of a step in the order of their prompts, and those that dynamic sampling replaced."""
        found = self._draw_groups(count)
        if not self._rl.dynamic_sampling:
            return found, []
        of_later_steps = (self._plan.batch.total_steps - self.steps_begun - 1) * count
        for _ in range(MOST_REFILLS):
            missing = count - sum(not group.is_flat for group in found)
            refill = min(missing, self._cursor.left - of_later_steps)  # the planned steps come first
            if refill <= 0:
                break
            found += self._draw_groups(refill)
        return choose_groups(found, count)

    def _draw_groups(self, count: int) -> list[Group]:
        drawn = self._cursor.draw(count)
        return make_groups(drawn, self._sampler.sample(drawn, num_samples=self._rl.samples_per_prompt), self._options)

    def _keep(self, groups: Sequence[Group], replaced: Sequence[Group]) -> None:
        error: UserError | None = None
        if self._folder is not None and dist.get_rank() == 0:
            names = [source.source for source in self._plan.data.sources]
            records = [
                record
                for some, is_trained in ((groups, True), (replaced, False))
                for group in some
                for record in group.records(self.steps_begun, names[group.prompt.source], is_trained=is_trained)
            ]
            try:
                write_rollouts(self._folder, self.steps_begun, records)
            except UserError as caught:
                error = caught
        raise_on_all_ranks(error)

    def _facts_of_step(self, groups: Sequence[Group], replaced: Sequence[Group], sampled_s: float) -> dict[str, Any]:
        sampled = sum(sample.length for group in [*groups, *replaced] for sample in group.samples)
        facts = facts_of(groups) | {"sampling_s": sampled_s, "sampled_tokens_per_s": sampled / sampled_s}
        if self._rl.dynamic_sampling:
            facts["replaced_groups"] = len(replaced)
        return facts

    def pass_rates(self) -> dict[str, list[float]]:
        """Of each source the share of right answers to each of its held-out prompts, by accuracy alone.

        All ranks must call this. The samples are the same ones at every validation of equal weights.
        """
        self._sampler.take_weights(step=self.steps_begun)
        return self._sampler.pass_rates()

    def pieces_of(self, sample_id: str) -> list[tuple[str, Span]]:
        """No document lies behind a completion; `megatron-ext rollouts` shows them."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on behind the last step; the same on all ranks."""
        assert not self._updates, "a checkpoint is written between steps"
        return {
            "version": _STATE_VERSION,
            "steps_begun": self.steps_begun,
            "prompts": self._cursor.state_dict(),
            "expected": dict(self._sampler.expected),
            "tally": self.tally.state_dict(),
            "before": self.before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, in any data-parallel layout.

        Raises:
            DataError: If the state belongs to other prompts.
        """
        if state.get("version") != _STATE_VERSION:
            raise DataError(
                f"rollout position: version: the checkpoint has {state.get('version')!r}, this run {_STATE_VERSION}; "
                "resume with the code that wrote it."
            )
        self._cursor.load_state_dict(state["prompts"])
        self.steps_begun, self.before = state["steps_begun"], list(state["before"])
        self._sampler.expected = dict(state["expected"])
        self.tally.load_state_dict(state["tally"])
