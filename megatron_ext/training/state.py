"""How far a stage has come. `TrainState.advance` is the only place where counters move."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class StepResult:
    """What one optimizer update did, summed over all ranks.

    Attributes:
        loss: Mean cross entropy over the step's trained tokens, in nats.
        loss_by_source: The same for each source that the step read.
        grad_norm: L2 norm of the gradient before clipping.
        lr: Learning rate of the update.
        samples: Samples of the global batch.
        processed_tokens: Tokens of its rows.
        trained_tokens: Tokens that carried loss; 0 when the update was skipped.
        skipped: What was not finite, where, and the samples; None when there was an update.
        norms: `grad_norm_by_kind` and `weight_norm_by_kind` in steps that look at them.
        loss_by_domain: The loss of each domain, where the stage reads several.
        rank_seconds: Each rank's own time, when it is measured.
        objective: What else the objective has to log of the step.
        sampled_tokens: Of the step's completions, in stage rl.
        loss_kind: What weighed the same, `token` or `sample`; empty but in stage sft.
    """

    loss: float
    loss_by_source: dict[str, float]
    grad_norm: float
    lr: float
    samples: int
    processed_tokens: int
    trained_tokens: int
    skipped: str | None = None
    norms: dict[str, dict[str, float]] = field(default_factory=dict)
    loss_by_domain: dict[str, float] = field(default_factory=dict)
    rank_seconds: tuple[float, ...] = ()
    objective: dict[str, Any] = field(default_factory=dict)
    sampled_tokens: int = 0
    loss_kind: str = ""


@dataclass(frozen=True)
class TrainState:
    """Counters of a stage, from its beginning."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    trained_tokens: int = 0
    skipped_steps: int = 0
    sampled_tokens: int = 0

    def advance(self, result: StepResult) -> TrainState:
        """The state after one more step."""
        return TrainState(
            step=self.step + 1,
            consumed_samples=self.consumed_samples + result.samples,
            consumed_tokens=self.consumed_tokens + result.processed_tokens,
            trained_tokens=self.trained_tokens + result.trained_tokens,
            skipped_steps=self.skipped_steps + (result.skipped is not None),
            sampled_tokens=self.sampled_tokens + result.sampled_tokens,
        )

    def to_json(self) -> dict[str, int]:
        """The counters as a plain mapping."""
        return asdict(self)
