"""The one back-edge: batches of completions that the policy in training has just sampled.

A step begins with the policy's present weights: prompts are drawn, sampled and rewarded (rewards run in worker
processes beside generation), groups get their advantages, and prompts with completions are packed into rows. A group
is sampled on one data-parallel rank, which ranks share by expected length; then all ranks hold all completions, so
advantages and rows are the same in every layout. Log-probabilities of the policy that sampled are computed again by
the training path, those of the reference by a frozen copy of the first weights. What the sampler and the trainer see
differently is measured before anything is learned.

`next_step` then gives one update's microbatches at a time: the prompts of a mini-batch, in the order in which they were
drawn, as often as `rl.epochs` says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module

from data_tools.errors import DataError, TrainingError, UserError
from data_tools.tokenizer import Tokenizer
from megatron_ext.datasets.batch import rows_of_rank
from megatron_ext.datasets.documents import Span
from megatron_ext.datasets.prompts import DrawnPrompt, PromptCursor, planned_prompts, sample_seed
from megatron_ext.datasets.rollout_batch import RolloutBatch
from megatron_ext.datasets.rollout_file import write_rollouts
from megatron_ext.objectives.rewards import RewardParts, RewardPool
from megatron_ext.objectives.token_log_probs import TokenScores
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Completion, Prompt, Sampling
from megatron_ext.rollout.sampling_run import NonFiniteLogitsError
from megatron_ext.runtime.agreement import raise_on_all_ranks
from megatron_ext.training.microbatches import run_schedule
from megatron_ext.training.mismatch import measure_mismatch, require_agreement
from megatron_ext.training.rl_options import reward_options, rl_options
from megatron_ext.training.rollout_groups import Group, Scored, facts_of, make_groups
from megatron_ext.training.rollout_rows import PADDING, make_row, pack_pieces, pieces_of
from megatron_ext.training.rollout_tally import Tally

_MOST_REFILLS = 4
"""Times that dynamic sampling draws again in one step; what is flat then is learned from as it is."""

_STATE_VERSION = 1


class RolloutSource:
    """Samples, rewards and packs; stands where a cursor stands in other stages.

    Attributes:
        facts: What there is to log of the newest step.
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
        self._model, self._reference = model, reference
        self._options = rl_options(self._rl)
        self._prompts = planned_prompts(plan)
        self._cursor = PromptCursor(plan, self._prompts)
        self._tokenizer = Tokenizer.load(plan.data.tokenizer, special_tokens="parse")
        self._sampling = Sampling(
            max_new_tokens=self._rl.max_new_tokens,
            temperature=self._rl.temperature,
            top_k=self._rl.top_k,
            top_p=self._rl.top_p,
            stop_ids=self._prompts.stop_ids,
        )
        self._engine = InProcessEngine(
            model,
            plan,
            groups,
            num_slots=self._rl.slots,
            tokens_per_slot=self._rl.max_prompt_tokens + self._rl.max_new_tokens,
            decode=self._tokenizer.decode,
        )
        workers = max(1, min(4, (os.cpu_count() or 1) // dist.get_world_size()))
        self._rewards = RewardPool(
            reward_options(self._rl), num_workers=workers, time_limit_s=self._rl.rewards.timeout_s
        )
        self._updates: list[tuple[int, tuple[RolloutBatch, ...]]] = []
        self._expected: dict[str, int] = {}
        self.steps_begun = 0
        self.tally = Tally(plan)
        self.before: list[dict[str, Any]] = []  # ledger of the stages behind the weights, a row a source
        self.facts: dict[str, Any] = {}

    def close(self) -> None:
        """Ends the workers."""
        self._rewards.close()

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
            TrainingError: Sampler and trainer disagree, or nothing is left to learn from.
        """
        if not self._updates:
            self._begin_step()
        tokens, batches = self._updates.pop(0)
        self.tally.processed += tokens
        return batches

    def _begin_step(self) -> None:
        began = time.perf_counter()
        self._engine.load_weights(policy_version=self.steps_begun)
        groups, replaced = self._collect(self._plan.batch.global_batch_size)
        sampled_s = time.perf_counter() - began
        self.steps_begun += 1
        self._keep(groups, replaced)
        updates = [self._rows(part) for part in self._mini_batches(groups)]
        mismatch = measure_mismatch([batch for _, batches in updates for batch in batches], self._groups)
        require_agreement(mismatch, self._rl.mismatch_threshold, step=self.steps_begun)
        self._updates = updates * self._rl.epochs
        for some, passes in ((groups, self._rl.epochs), (replaced, 0)):
            for group in some:
                self.tally.add(group, passes=passes, options=self._options)
        self._note_lengths(groups)
        self.facts = self._facts_of_step(groups, replaced, sampled_s)

    def _mini_batches(self, groups: Sequence[Group]) -> list[Sequence[Group]]:
        size = self._rl.mini_batch_prompts or len(groups)
        return [groups[first : first + size] for first in range(0, len(groups), size)]

    def _collect(self, count: int) -> tuple[list[Group], list[Group]]:
        """The groups of a step in the order of their prompts, and those that dynamic sampling replaced."""
        found = self._draw_groups(count)
        if not self._rl.dynamic_sampling:
            return found, []
        for _ in range(_MOST_REFILLS):
            missing = count - sum(not group.is_flat for group in found)
            if missing <= 0 or self._cursor.left < missing:
                break
            found += self._draw_groups(missing)
        by_use = sorted(range(len(found)), key=lambda place: (found[place].is_flat, place))
        kept = sorted(by_use[:count])
        return [found[place] for place in kept], [found[place] for place in sorted(by_use[count:])]

    def _draw_groups(self, count: int) -> list[Group]:
        drawn = self._cursor.draw(count)
        return make_groups(drawn, self._sample(drawn, num_samples=self._rl.samples_per_prompt), self._options)

    def _sample(self, drawn: Sequence[DrawnPrompt], *, num_samples: int) -> list[list[Scored]]:
        """Samples and scores completions of some prompts; the same result on all ranks.

        All ranks must call this, behind `load_weights`.

        Raises:
            UserError: Of whichever rank has one: logits that are not finite, a scorer that raises.
        """
        prompts = [Prompt(one.row.ids, num_samples, one.seed, self._expected.get(str(one.source))) for one in drawn]
        error: UserError | None = None
        mine: list[tuple[int, int, Scored]] = []
        try:
            mine = self._sample_mine(drawn, prompts)
        except NonFiniteLogitsError as caught:
            where = f"prompt {drawn[caught.sample.prompt_index].row.id}, new token {caught.step}"
            error = TrainingError(
                f"sampling behind step {self.steps_begun}: {where}: the model's logits are not finite.\n"
                "  The newest checkpoint is untouched; go on from it with a lower optimizer.lr or clip_grad, which is "
                "another stage."
            )
        except UserError as caught:
            error = caught
        raise_on_all_ranks(error)
        of_ranks: list[list[tuple[int, int, Scored]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(of_ranks, mine)
        scored: list[list[Scored]] = [[] for _ in drawn]
        for place, _, sample in sorted((one for of_rank in of_ranks for one in of_rank), key=lambda one: one[:2]):
            scored[place].append(sample)
        assert all(len(group) == num_samples for group in scored), "every completion is of one rank"
        return scored

    def _sample_mine(self, drawn: Sequence[DrawnPrompt], prompts: Sequence[Prompt]) -> list[tuple[int, int, Scored]]:
        """This rank's completions; of the tensor-parallel ranks, which have the same ones, the first scores them."""
        pending: list[tuple[Completion, str, Future[RewardParts]]] = []
        scores = self._groups.tp.rank() == 0

        def submit(completion: Completion) -> None:
            text = self._text_of(completion)
            future = self._rewards.submit(drawn[completion.prompt_index].row.record, text)
            pending.append((completion, text, future))

        callback: Callable[[Completion], None] | None = submit if scores else None
        self._engine.generate(prompts, self._sampling, on_finished=callback)
        return [
            (completion.prompt_index, completion.sample_index, Scored(completion, text, future.result()))
            for completion, text, future in pending
        ]

    def _text_of(self, completion: Completion) -> str:
        ids = completion.token_ids
        return self._tokenizer.decode(ids[:-1] if ids[-1] in self._sampling.stop_ids else ids)

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
        self._require_weight(groups)
        old = self._scores_of(self._model, batches)
        reference = self._scores_of(self._reference, batches) if self._reference is not None else [None] * len(batches)
        return len(rows) * length, tuple(
            replace(batch, old_log_probs=mine, reference_log_probs=other)
            for batch, mine, other in zip(batches, old, reference, strict=True)
        )

    def _require_weight(self, groups: Sequence[Group]) -> None:
        if self._rl.overlong == "mask" and all(sample.is_cut_off for group in groups for sample in group.samples):
            raise TrainingError(
                f"step {self.steps_begun}: all completions of an update were cut at rl.max_new_tokens "
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

    def _note_lengths(self, groups: Sequence[Group]) -> None:
        """What completions of each source are expected to take in the next step: as many as in this one."""
        for source in range(len(self._plan.data.sources)):
            lengths = [s.length for group in groups if group.prompt.source == source for s in group.samples]
            if lengths:
                self._expected[str(source)] = -(-sum(lengths) // len(lengths))

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
        self._engine.load_weights(policy_version=self.steps_begun)
        rates = {}
        for index, source in enumerate(self._prompts.sources):
            seeds = [sample_seed(self._plan.seed, f"held out {row.id}") for row in source.held_out]
            drawn = [DrawnPrompt(row, index, -1, seed) for row, seed in zip(source.held_out, seeds, strict=True)]
            scored = self._sample(drawn, num_samples=self._rl.validation_samples)
            rates[self._plan.data.sources[index].source] = [
                sum(sample.is_right for sample in samples) / len(samples) for samples in scored
            ]
        return rates

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
            "expected": dict(self._expected),
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
        self._expected = dict(state["expected"])
        self.tally.load_state_dict(state["tally"])
