"""One optimizer update.

Loss and gradient norm are looked at before the weights are touched: after a NaN the model in memory
is still the one of the step before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.profiler import record_function

from data_tools.errors import DataError, TrainingError
from megatron_ext.datasets.batch import Batch
from megatron_ext.datasets.conversations import ConversationCursor
from megatron_ext.objectives.pretrain import PretrainObjective, Report
from megatron_ext.runtime.agreement import raise_on_all_ranks
from megatron_ext.runtime.device import device
from megatron_ext.training.microbatches import run_schedule
from megatron_ext.training.norms import norms_by_kind
from megatron_ext.training.optimizer import clip_and_step, set_learning_rate
from megatron_ext.training.parts import Parts
from megatron_ext.training.state import StepResult

_SAMPLE_IDS = {
    "pretrain": "source:epoch:sample",
    "sft": "rows",
    "rl": "prompts:place of the update's first prompt:row of completions",
}
"""What the ids of samples are, by stage."""

_LISTED_SAMPLES, _LISTED_PIECES = 8, 4
"""Of a step that is not finite: samples listed with their documents, and documents of each."""


class NonFiniteError(TrainingError):
    """Loss or gradient is not finite in `step`."""

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


def train_step(parts: Parts, *, lr: float, step: int, may_skip: bool = False) -> StepResult:
    """Reads the next global batch and updates the parameters once.

    All ranks must call this.

    Args:
        parts: What is trained.
        lr: Learning rate of this update.
        step: Number of this step, from 1; named in errors.
        may_skip: Leave weights and optimizer alone, rather than stop, when loss or gradient is not finite.

    Raises:
        NonFiniteError: Loss or gradient is not finite; the weights are those of the step before.
        DataError: A rank cannot read its samples.
    """
    parts.clock.restart()
    samples, tokens = parts.cursor.consumed_samples, parts.cursor.consumed_tokens
    loss_kind = parts.cursor.loss if isinstance(parts.cursor, ConversationCursor) else ""
    batches = _read(parts)
    set_learning_rate(parts.optimizer, lr)
    parts.model.zero_grad_buffer()
    parts.optimizer.zero_grad()
    reports = _reports_of(parts, batches, forward_only=False)
    report = sum_over_ranks(parts.objective, parts.groups, reports)
    loss = _mean(report.sum(0))
    grad_norm = _prepared_grad_norm(parts) if math.isfinite(loss) else math.nan
    skipped = None
    if not math.isfinite(grad_norm):
        failed = _samples_not_finite(batches, reports)
        skipped = _non_finite(parts, batches, failed, loss=loss, grad_norm=grad_norm, step=step)
        if not may_skip:
            remedy = "  The newest checkpoint is untouched. Lower optimizer.lr or look at these samples."
            raise NonFiniteError(f"{skipped}\n{remedy}", step=step)
    norms = norms_by_kind(parts.model, parts.optimizer, parts.groups) if _is_norm_step(parts, step, skipped) else {}
    if skipped is None:
        clip_and_step(parts.optimizer, grad_norm)
    return StepResult(
        loss=loss,
        loss_by_source=losses_by_source(parts, report),
        loss_by_domain=losses_by_domain(parts, report),
        grad_norm=grad_norm,
        lr=lr,
        samples=parts.cursor.consumed_samples - samples,
        processed_tokens=parts.cursor.consumed_tokens - tokens,
        trained_tokens=int(report[:, -1].sum()) if skipped is None else 0,
        skipped=skipped,
        norms=norms,
        rank_seconds=parts.clock.of_all_ranks(),
        objective=parts.objective.metrics(report),
        loss_kind=loss_kind,
    )


@record_function("read")
def _read(parts: Parts) -> Sequence[Batch]:
    """This rank's microbatches; what is wrong with the data of one rank is raised on all."""
    error = None
    batches: Sequence[Batch] = ()
    try:
        batches = parts.cursor.next_step()
    except DataError as caught:
        error = caught
    parts.clock.stop()
    raise_on_all_ranks(error)
    parts.clock.go_on()
    return batches


def run_microbatches(parts: Parts, batches: Sequence[Batch], *, forward_only: bool) -> Report:
    """Runs Megatron-Core's schedule over this rank's microbatches.

    All ranks must call this, with the same number of microbatches.

    Args:
        parts: What is trained.
        batches: This rank's microbatches, at least one, of one shape.
        forward_only: Whether to leave gradients alone.

    Returns:
        The objective's reports of all microbatches and ranks together: sums, or maxima in its `max_columns`.
    """
    return sum_over_ranks(parts.objective, parts.groups, _reports_of(parts, batches, forward_only=forward_only))


def _reports_of(parts: Parts, batches: Sequence[Batch], *, forward_only: bool) -> list[Report]:
    return run_schedule(parts.model, parts.objective, batches, groups=parts.groups, forward_only=forward_only)


def sum_over_ranks(objective: PretrainObjective, groups: ProcessGroupCollection, reports: list[Report]) -> Report:
    """The reports of all microbatches and ranks together: sums, or maxima in the objective's `max_columns`.

    All ranks must call this.

    Args:
        objective: That made them.
        groups: Process groups.
        reports: Of this rank's microbatches; of the last pipeline stage only.
    """
    columns = list(objective.max_columns)
    if groups.pp.rank() == groups.pp.size() - 1:
        stacked = torch.stack(reports)
        total, largest = stacked.sum(0), stacked[..., columns].amax(0)
    else:
        total = torch.zeros(objective.num_sources, objective.report_columns, dtype=torch.float64, device=device())
        largest = total[:, columns]
    dist.all_reduce(total, group=groups.dp_cp)
    if columns:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.dp_cp)
        total[:, columns] = largest
    dist.broadcast(total, group_src=groups.pp.size() - 1, group=groups.pp)
    return total.cpu()


def losses_by_source(parts: Parts, report: Report) -> dict[str, float]:
    """Mean loss in nats of each source that had trained tokens."""
    sources = parts.plan.data.sources
    return {source.source: _mean(row) for source, row in zip(sources, report, strict=True) if row[1] > 0}


def losses_by_domain(parts: Parts, report: Report) -> dict[str, float]:
    """The same of each domain, where the stage reads several."""
    domains = [source.domain for source in parts.plan.data.sources]
    sums = {name: report[[domain == name for domain in domains]].sum(0) for name in dict.fromkeys(domains)}
    return {name: _mean(row) for name, row in sums.items() if row[1] > 0} if len(sums) > 1 else {}


def _mean(row: torch.Tensor) -> float:
    """Summed loss over what divides it; of the row of a report."""
    loss, weight = row[:2].tolist()
    return loss / weight if weight else math.nan


def _prepared_grad_norm(parts: Parts) -> float:
    parts.optimizer.prepare_grads()
    return float(parts.optimizer.get_grad_norm())


def _is_norm_step(parts: Parts, step: int, skipped: str | None) -> bool:
    interval = parts.plan.logging.norms_interval_steps
    return bool(interval) and step % interval == 0 and skipped is None


def _samples_not_finite(batches: Sequence[Batch], reports: Sequence[Report]) -> list[str]:
    """The samples of this rank's microbatches whose loss is not finite; none known but on the last pipeline stage."""
    return [
        sample
        for batch, report in zip(batches, reports, strict=False)
        if not bool(report.isfinite().all())
        for sample in batch.sample_ids
    ]


def _non_finite(
    parts: Parts, batches: Sequence[Batch], failed: Sequence[str], *, loss: float, grad_norm: float, step: int
) -> str:
    """What was not finite, where, and which samples were read; the same on all ranks, which must all call this."""
    what, value = ("gradient norm", grad_norm) if math.isfinite(loss) else ("loss", loss)
    facts: list[Any] = [None] * dist.get_world_size()
    mine = {
        "samples": [sample for batch in batches for sample in batch.sample_ids],
        "failed": list(failed),
        "parameters": _non_finite_parameters(parts),
    }
    dist.all_gather_object(facts, mine)
    of_failed = {sample for fact in facts for sample in fact["failed"]}
    samples = sorted({sample for fact in facts for sample in fact["samples"]}, key=lambda s: (s not in of_failed, s))
    parameters = sorted({name for fact in facts for name in fact["parameters"]})
    where = ", ".join(parameters[:8]) or "no gradient: the forward pass"
    weights = f"of step {step - 1}" if parts.plan.rl is None else "before this update"
    return (
        f"step {step}: {what} is {value}; the weights are those {weights}.\n"
        f"  first seen in   {where}{' …' if len(parameters) > 8 else ''}\n"
        f"  learning rate   {parts.optimizer.param_groups[0]['lr']:g}\n"
        f"  samples read    {' '.join(samples)}  ({_SAMPLE_IDS[parts.plan.stage]})\n"
        f"{_documents_of(parts, samples, num_failed=len(of_failed))}"
    )


def _documents_of(parts: Parts, samples: Sequence[str], *, num_failed: int) -> str:
    """The documents and offsets of some samples, a line a sample, as many as a person looks at; failed ones first."""
    some = 0 < num_failed < len(samples)
    first = f"  (first the {num_failed:,} samples of microbatches whose loss is not finite)" if some else ""
    lines = []
    for sample in samples[:_LISTED_SAMPLES]:
        pieces = parts.cursor.pieces_of(sample)
        listed = [
            f"{source} document {span.document:,}, tokens {span.start:,} to {span.start + span.length:,}"
            for source, span in pieces[:_LISTED_PIECES]
        ]
        more = [f"and {len(pieces) - _LISTED_PIECES:,} more"] if pieces[_LISTED_PIECES:] else []
        lines.append(f"    {sample}: {'; '.join([*listed, *more]) or 'no document'}")
    if samples[_LISTED_SAMPLES:]:
        verb = "rollouts shows their completions" if parts.plan.rl is not None else "trace lists all"
        lines.append(f"    and {len(samples) - _LISTED_SAMPLES:,} samples more; megatron-ext {verb}")
    return "\n".join([f"  documents{first}", *lines])


def _non_finite_parameters(parts: Parts) -> list[str]:
    """Names of this rank's parameters whose value or gradient is not finite, values first."""
    stage = f" (pipeline stage {parts.groups.pp.rank()})" if parts.groups.pp.size() > 1 else ""
    names = []
    for name, parameter in parts.model.module.named_parameters():
        for kind, tensor in (("value", parameter.data), ("gradient", parameter.main_grad)):
            if not bool(torch.isfinite(tensor).all()):
                names.append(f"{name.removeprefix('module.')} {kind}{stage}")
    return names
