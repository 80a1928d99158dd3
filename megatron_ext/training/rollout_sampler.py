"""Prompts in, scored completions out: the policy samples, and rewards run in worker processes beside it.

A prompt's completions are sampled on one data-parallel rank, which ranks share by expected length; then all ranks hold
all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import TrainingError, UserError
from data_tools.tokenizer import Tokenizer
from megatron_ext.datasets.prompts import DrawnPrompt, sample_seed
from megatron_ext.datasets.rollout_file import write_rollouts
from megatron_ext.objectives.rewards import PARTS, RewardParts, RewardPool, prompt_name
from megatron_ext.plan.rl_prompts import PromptSet
from megatron_ext.plan.rollout import slots_in_use
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Completion, Prompt, RolloutEngine
from megatron_ext.rollout.sampling_run import NonFiniteLogitsError
from megatron_ext.rollout.vllm_engine import VllmEngine
from megatron_ext.runtime.agreement import answer_of_main_rank, raise_on_all_ranks
from megatron_ext.runtime.parallel import PatientWait
from megatron_ext.training.rl_options import reward_options, sampling_of
from megatron_ext.training.rollout_groups import Group, Scored, without_advantages

_MOST_SCORERS = 16
"""Of one rank: answers of a large policy are long, and each may take its whole limit of time."""


class RolloutSampler:
    """The engine and the scorers of an rl stage.

    Attributes:
        expected: Tokens that a completion is expected to take, by the number of its source.
    """

    def __init__(
        self,
        plan: StagePlan,
        prompts: PromptSet,
        model: Any,
        groups: ProcessGroupCollection,
        *,
        folder: Path | None = None,
    ) -> None:
        """Makes the engine, and starts the workers.

        All ranks must call this.

        Args:
            plan: The stage, of kind rl.
            prompts: Of the plan.
            model: The policy, wrapped for training.
            groups: Process groups.
            folder: Of the stage, where the completions of a failed step are kept; None keeps none.
        """
        assert plan.rl is not None, "completions are sampled by an rl stage"
        self._plan, self._rl, self._prompts, self._groups = plan, plan.rl.options, prompts, groups
        self._folder = folder
        self._tokenizer = Tokenizer.load(plan.data.tokenizer, special_tokens="parse")
        self._sampling = sampling_of(self._rl, prompts.stop_ids)
        self._engine = self._engine_of(model)
        self._wait_for_all = PatientWait()
        self._rewards: RewardPool | None = None
        if groups.tp.rank() == 0:  # of the ranks that hold the same completions
            self._rewards = RewardPool(
                reward_options(self._rl), num_workers=_num_scorers(groups), time_limit_s=self._rl.rewards.timeout_s
            )
        self._step = 0
        self.expected: dict[str, int] = {}

    def _engine_of(self, model: Any) -> RolloutEngine:
        num_slots = slots_in_use(self._rl, self._plan.batch)
        if self._rl.engine == "vllm":
            assert self._folder is not None, "servers read weights from the stage's folder"
            return VllmEngine(model, self._plan, self._groups, num_slots=num_slots, folder=self._folder)
        return InProcessEngine(
            model,
            self._plan,
            self._groups,
            num_slots=num_slots,
            tokens_per_slot=self._rl.max_prompt_tokens + self._rl.max_new_tokens,
            decode=self._tokenizer.decode,
        )

    def close(self) -> None:
        """Ends the workers, and removes weights that were pushed."""
        if self._rewards is not None:
            self._rewards.close()
        if isinstance(self._engine, VllmEngine):
            self._engine.close()

    def take_weights(self, *, step: int) -> None:
        """Samples with the present weights from now on.

        All ranks must call this.

        Args:
            step: Steps that made them.
        """
        self._step = step
        self._engine.load_weights(policy_version=step)

    def note_lengths(self, groups: Sequence[Group]) -> None:
        """Expects completions of each source to take in the next step as many tokens as in this one."""
        for source in range(len(self._plan.data.sources)):
            lengths = [s.length for group in groups if group.prompt.source == source for s in group.samples]
            if lengths:
                self.expected[str(source)] = -(-sum(lengths) // len(lengths))

    def sample(self, drawn: Sequence[DrawnPrompt], *, num_samples: int) -> list[list[Scored]]:
        """Samples and scores completions of some prompts; the same result on all ranks.

        All ranks must call this, behind `take_weights`.

        Raises:
            UserError: Of whichever rank has one: logits that are not finite, a scorer that raises. What had ended is
                kept, and the message says where.
        """
        prompts = [Prompt(one.row.ids, num_samples, one.seed, self.expected.get(str(one.source))) for one in drawn]
        mine, error = self._sample_mine(drawn, prompts)
        self._wait_for_all()  # one rank's completions or answers may take much longer than another's
        of_ranks: list[list[tuple[int, int, Scored]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(of_ranks, mine)
        scored: list[list[Scored]] = [[] for _ in drawn]
        for place, _, sample in sorted((one for of_rank in of_ranks for one in of_rank), key=lambda one: one[:2]):
            scored[place].append(sample)
        try:
            raise_on_all_ranks(error)
        except UserError as shared:
            raise type(shared)(f"{shared}{self._keep_failed(drawn, scored)}") from None
        assert all(len(group) == num_samples for group in scored), "every completion is of one rank"
        return scored

    def _sample_mine(
        self, drawn: Sequence[DrawnPrompt], prompts: Sequence[Prompt]
    ) -> tuple[list[tuple[int, int, Scored]], UserError | None]:
        """This rank's completions; of the tensor-parallel ranks, which have the same ones, the first scores them.

        With an error of sampling or scoring, its first one, come the completions that had ended.
        """
        error: UserError | None = None
        pending: list[tuple[Completion, str, Future[RewardParts]]] = []
        rewards = self._rewards

        def submit(completion: Completion) -> None:
            if rewards is not None:
                text, row = self._text_of(completion), drawn[completion.prompt_index].row
                pending.append((completion, text, rewards.submit(row.record, row.opening + text)))

        try:
            self._engine.generate(prompts, self._sampling, on_finished=submit)
        except NonFiniteLogitsError as caught:
            where = f"prompt {prompt_name(drawn[caught.sample.prompt_index].row.record)}, new token {caught.step}"
            error = TrainingError(
                f"sampling behind step {self._step}: {where}: the model's logits are not finite.\n"
                "  The weights have diverged. The newest checkpoint is untouched, but the same steps would follow it: "
                "begin again with a lower optimizer.lr or optimizer.clip_grad, which is another stage."
            )
        except UserError as caught:
            error = caught
        mine = []
        for completion, text, future in pending:
            try:
                reward = future.result()
            except UserError as caught:
                error, reward = error or caught, RewardParts(0.0, dict.fromkeys(PARTS, 0.0), "failed", str(caught))
            mine.append((completion.prompt_index, completion.sample_index, Scored(completion, text, reward)))
        return mine, error

    def _keep_failed(self, drawn: Sequence[DrawnPrompt], scored: Sequence[Sequence[Scored]]) -> str:
        """Writes what had ended when sampling or scoring failed; says where, to end a message with.

        All ranks must call this.
        """
        said = ""
        if self._folder is not None and dist.get_rank() == 0:
            names = [source.source for source in self._plan.data.sources]
            records = [
                record
                for prompt, samples in zip(drawn, scored, strict=True)
                for record in without_advantages(prompt, samples).records(
                    self._step + 1, names[prompt.source], is_trained=False
                )
            ]
            try:
                said = f"\n  Sampled by then: {write_rollouts(self._folder, self._step + 1, records, has_failed=True)}"
            except UserError as error:
                said = f"\n  What was sampled by then is lost: {error}"
        return str(answer_of_main_rank(said))

    def _text_of(self, completion: Completion) -> str:
        ids = completion.token_ids
        return self._tokenizer.decode(ids[:-1] if ids[-1] in self._sampling.stop_ids else ids)

    def pass_rates(self) -> dict[str, list[float]]:
        """Of each source the share of right answers to each of its held-out prompts, by accuracy alone.

        All ranks must call this, behind `take_weights`. Equal weights sample the same answers at every validation.
        """
        rates = {}
        for index, source in enumerate(self._prompts.sources):
            seeds = [sample_seed(self._plan.seed, f"held out {row.id}") for row in source.held_out]
            drawn = [DrawnPrompt(row, index, -1, seed) for row, seed in zip(source.held_out, seeds, strict=True)]
            scored = self.sample(drawn, num_samples=self._rl.validation_samples)
            rates[self._plan.data.sources[index].source] = [
                sum(sample.is_right for sample in samples) / len(samples) for samples in scored
            ]
        return rates


def _num_scorers(groups: ProcessGroupCollection) -> int:
    """Processes of a rank that scores: its part of this machine's cores."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    scoring_here = max(1, ranks_here // groups.tp.size())
    return max(1, min(_MOST_SCORERS, (os.cpu_count() or 1) // scoring_here))
