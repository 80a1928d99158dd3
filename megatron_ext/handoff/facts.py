"""What both engines are told: numbers of a stage's plan in the units that they count in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.rl_schema import RlRecipe

GPUS_PER_NODE = 8


@dataclass(frozen=True)
class StageFacts:
    """A stage to hand off, and where its files will lie.

    Attributes:
        plan: The stage, of kind rl.
        folder: Absolute, of everything that is handed off.
    """

    plan: StagePlan
    folder: Path

    @property
    def rl(self) -> RlRecipe:
        """The recipe's section."""
        assert self.plan.rl is not None, "an rl stage is handed off"
        return self.plan.rl.options

    @property
    def samples_per_update(self) -> int:
        """Completions of one optimizer update."""
        return (self.rl.mini_batch_prompts or self.plan.batch.global_batch_size) * self.rl.samples_per_prompt

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one step."""
        step = self.plan.batch.global_batch_size
        return step // (self.rl.mini_batch_prompts or step) * self.rl.epochs

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warmup."""
        return round(self.plan.schedule.warmup_samples / self.plan.batch.global_batch_size)

    @property
    def nodes(self) -> tuple[int, int]:
        """Machines, and GPUs of each."""
        ranks = self.plan.layout.world_size
        return max(1, -(-ranks // GPUS_PER_NODE)), min(ranks, GPUS_PER_NODE)

    @property
    def when_saved(self) -> str:
        """When an engine saves; both do it behind the last step too."""
        batch, interval = self.plan.batch, self.plan.cadence.checkpoint_interval_steps
        alone = "; longer than the stage: nothing is saved before its end" if interval > batch.total_steps else ""
        return f"steps; the last one is saved too{alone}"

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its completion at most."""
        return self.rl.max_prompt_tokens + self.rl.max_new_tokens

    @property
    def prompts_to_draw(self) -> int:
        """Rows of the training file: what the steps draw, or all that may be drawn where groups are replaced."""
        assert self.plan.rl is not None, "an rl stage is handed off"
        size = sum(source.prompts for source in self.plan.rl.sources)
        return int(self.rl.max_epochs * size) if self.rl.dynamic_sampling else self.plan.batch.total_samples
