"""Everything a stage trains with, built once from its plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module

from megatron_ext.datasets.conversation_ledger import conversation_ledger_of
from megatron_ext.datasets.conversations import ConversationCursor
from megatron_ext.datasets.ledger import LedgerRow, ledger_of
from megatron_ext.datasets.open_cursor import Cursor, open_cursor
from megatron_ext.models.backends import backend_of_all_ranks
from megatron_ext.models.build import build_model
from megatron_ext.objectives.pretrain import PretrainObjective
from megatron_ext.objectives.rl_objective import RlObjective
from megatron_ext.objectives.sft import SftObjective
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.optimizer import make_optimizer
from megatron_ext.training.optimizer_state import fill_states
from megatron_ext.training.rank_times import StepClock
from megatron_ext.training.rl_options import rl_options
from megatron_ext.training.rollout_source import RolloutSource


@dataclass(frozen=True)
class Parts:
    """The moving parts of a stage on this rank.

    Attributes:
        plan: What is being done.
        groups: Process groups.
        model: This rank's pipeline stage, in `DistributedDataParallel`.
        optimizer: AdamW over the model's gradient buffers.
        cursor: Where the data is read.
        objective: What is optimised.
        clock: Times this rank's own part of a step, if the plan wants it.
    """

    plan: StagePlan
    groups: ProcessGroupCollection
    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    cursor: Cursor | RolloutSource
    objective: PretrainObjective
    clock: StepClock

    def ledger(self) -> list[LedgerRow]:
        """What has been read up to where the cursor stands."""
        cursor = self.cursor
        if isinstance(cursor, RolloutSource):
            return cursor.tally.ledger(cursor.before)
        return (conversation_ledger_of if isinstance(cursor, ConversationCursor) else ledger_of)(self.plan, cursor)

    def close(self) -> None:
        """Ends the processes that an rl stage's rewards run in."""
        if isinstance(self.cursor, RolloutSource):
            self.cursor.close()

    @property
    def is_last_pipeline_stage(self) -> bool:
        """Whether this rank computes losses."""
        return bool(self.groups.pp.rank() == self.groups.pp.size() - 1)


def make_parts(plan: StagePlan, groups: ProcessGroupCollection, *, folder: Path | None = None) -> Parts:
    """Builds model, optimizer, cursor and objective.

    All ranks must call this, inside a device scope.

    Args:
        plan: What is to be done.
        groups: Process groups.
        folder: Of the stage, where an rl stage keeps its completions; None keeps none.

    Raises:
        SetupError: The ranks' machines would build different layers.
    """
    model = wrap_model(plan, build_model(plan, groups, backend=backend_of_all_ranks(plan)), groups)
    clock = StepClock(is_on=plan.logging.rank_times)
    model.config.finalize_model_grads_func = clock.stopping_before(finalize_model_grads)
    optimizer = make_optimizer(plan, model, groups)
    fill_states(optimizer)  # the first checkpoint may come before the first update, when that was skipped
    return Parts(
        plan=plan,
        groups=groups,
        model=model,
        optimizer=optimizer,
        cursor=_cursor(plan, model, groups, folder),
        objective=objective_of(plan, groups),
        clock=clock,
    )


def _cursor(
    plan: StagePlan, model: DistributedDataParallel, groups: ProcessGroupCollection, folder: Path | None
) -> Cursor | RolloutSource:
    if plan.rl is None:
        return open_cursor(plan, data_parallel_rank=groups.dp.rank(), data_parallel_size=groups.dp.size())
    reference = None
    if plan.rl.has_reference:
        reference = build_model(plan, groups, backend=backend_of_all_ranks(plan)).requires_grad_(False)
    return RolloutSource(plan, model, groups, reference=reference, folder=folder)


def objective_of(plan: StagePlan, groups: ProcessGroupCollection) -> PretrainObjective:
    """What a stage of this kind optimises, and is validated on."""
    num_sources = len(plan.data.sources)
    if plan.rl is not None:
        return RlObjective(num_sources, options=rl_options(plan.rl.options), tp_group=groups.tp)
    kind = PretrainObjective if plan.sft is None else SftObjective
    return kind(num_sources, reset="attention" if plan.data.document_isolation == "attention" else "full")


def wrap_model(plan: StagePlan, model: Any, groups: ProcessGroupCollection) -> DistributedDataParallel:
    """Puts a model into Megatron-Core's data parallelism, for training.

    Gradients are summed in fp32 and divided once, by the global count of trained tokens. In bf16 core's
    `Float16Module` makes every parameter bf16, `A_log` and `D` too (0.19.2, `module.py:464`); their fp32
    masters live in the optimizer. Keeping the two fp32 in the model was tried: core's optimizer then maps
    its states to the wrong parameters when a checkpoint is written.
    """
    config = model.config
    if plan.precision == "bf16":
        model = Float16Module(config, model)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=plan.layout.use_distributed_optimizer,
        overlap_grad_reduce=plan.layout.overlap_grad_reduce,
        overlap_param_gather=plan.layout.overlap_param_gather,
    )
    layout = _buffer_layout(model, ddp_config, groups) if ddp_config.use_distributed_optimizer else None
    wrapped = DistributedDataParallel(config, ddp_config, model, pg_collection=groups, full_param_layout=layout)
    config.finalize_model_grads_func = finalize_model_grads
    if plan.layout.overlap_grad_reduce:
        config.no_sync_func = wrapped.no_sync  # only the last microbatch of a step sums over ranks
    return wrapped


def gather_weights(model: DistributedDataParallel) -> None:
    """Makes the weights whole that `parallel.overlap_param_gather` leaves in parts until the next forward pass.

    Whatever reads weights between two steps needs this first, forward passes through `model` apart.

    All ranks must call this.
    """
    if model.ddp_config.overlap_param_gather:
        model.start_param_sync(force_sync=True)


def _buffer_layout(model: Any, ddp_config: DistributedDataParallelConfig, groups: ProcessGroupCollection) -> Any:
    """Core's layout of the gradient buffers, with the padding between two buckets counted as content.

    An embedding tied over a pipeline is alone in its bucket, so the first stage's buffer has two. Core 0.19.2
    gathers the optimizer's state without the padding at each bucket's end (`distrib_optimizer.py:1398`) and
    takes the parameters out of it at their places with that padding (`:1790`): what was saved as the embedding's
    weight and moments began too late by that padding and ended in zeros. In shards (`dp_reshardable`) the same
    padding can reach over the end that core declares (`:1917`), and the save fails. Where no bucket but the last
    has padding to strip, both are right. The former is mended in core after 0.19.2 (NVIDIA/Megatron-LM#5077).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    full = DistributedOptimizer.compute_full_param_layout(parameters, None, groups.dp_cp.size(), ddp_config)
    for layout in full.layouts.values():
        for bucket, (start, end) in enumerate(layout.bucket_indices[:-1]):
            layout.per_bucket_numel_unpadded[bucket] = end - start
    return full
