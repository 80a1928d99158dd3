"""From a plan to a finished stage, once the process groups are there."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import TrainingError
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.agreement import answer_of_main_rank
from megatron_ext.runtime.device import gpu_generation, queue_note
from megatron_ext.runtime.parallel import Waits
from megatron_ext.runtime.seed import seed_everything
from megatron_ext.runtime.signals import StopRequest
from megatron_ext.training.chat_template import chat_template_of
from megatron_ext.training.checkpoint import (
    begin_with_weights,
    continue_from,
    damage_seen_by_all_ranks,
    load_checkpoint,
    load_weights,
)
from megatron_ext.training.checkpoint_facts import describe_resume, read_facts
from megatron_ext.training.file_list import checkpoints_of, require_whole
from megatron_ext.training.garbage import collecting_every
from megatron_ext.training.isolation import require_isolation
from megatron_ext.training.layer_graphs import layer_graphs
from megatron_ext.training.loop import Outcome, last_step_of, train
from megatron_ext.training.metrics import read_last
from megatron_ext.training.optimizer import describe_adam
from megatron_ext.training.parent_stage import parent_checkpoint
from megatron_ext.training.parts import make_parts
from megatron_ext.training.progress import describe_validation
from megatron_ext.training.rollout_source import RolloutSource
from megatron_ext.training.run_record import record_run
from megatron_ext.training.saving import Saver, remove_unfinished
from megatron_ext.training.slow_ranks import Place, places_of_ranks
from megatron_ext.training.stage_folder import StageFolder, write_json
from megatron_ext.training.state import TrainState
from megatron_ext.training.step import NonFiniteError
from megatron_ext.training.tp_buffers import tp_buffers
from megatron_ext.training.trace import StepTrace
from megatron_ext.training.validate import validate
from megatron_ext.training.watcher import Watcher


def newest_checkpoint(folder: StageFolder) -> Path | None:
    """The checkpoint at which a run goes on; None at the beginning."""
    return next(reversed(checkpoints_of(folder.checkpoints)), None)


@contextlib.contextmanager
def taken(folder: StageFolder, plan: StagePlan, *, is_main: bool) -> Iterator[None]:
    """Holds the folder for this run and clears what a killed one left; the main rank does it for all."""
    if not is_main:
        yield
        return
    with folder.open_for_writing(plan):
        remove_unfinished(folder.checkpoints)
        yield


def walk(
    plan: StagePlan,
    folder: StageFolder,
    groups: ProcessGroupCollection,
    *,
    is_main: bool,
    waits: Waits,
    beat: Callable[[], None],
) -> Outcome:
    """Builds, resumes, trains, and writes stage.json when the budget is spent.

    All ranks must call this, inside a device scope, with the folder taken.

    Args:
        plan: The stage.
        folder: Taken by this run.
        groups: Process groups.
        is_main: Whether this rank speaks and writes for all.
        waits: How long ranks wait for each other.
        beat: Tells who watches this rank that it goes on.
    """
    # Read again now that nobody else writes: another run may have come further since the first look.
    newest, is_finished = answer_of_main_rank((newest_checkpoint(folder), folder.is_finished))
    if is_finished:
        return Outcome(TrainState(**read_facts(newest)["state"]), "finished")
    begins_at = newest if newest is not None else parent_checkpoint(folder.run_root, plan)
    if begins_at is not None:
        require_whole(begins_at, look=damage_seen_by_all_ranks)
    with StopRequest() as stop, tp_buffers(plan), layer_graphs(plan):
        seed_everything(plan.seed, for_graphs=plan.has_layer_graphs)
        parts = make_parts(plan, groups, folder=folder.path)
        state = TrainState()
        if newest is not None:
            state = load_checkpoint(newest, parts)
        elif begins_at is not None:
            (continue_from if plan.parent is not None else begin_with_weights)(begins_at, parts)
        if isinstance(parts.cursor, RolloutSource):
            _load_reference(parts.cursor, plan, folder, groups)
        places = places_of_ranks(groups) if plan.logging.rank_times else ()
        watcher = _watcher(folder, plan, state, begins_at, places) if is_main else None
        if is_main:
            record_run(folder.path, plan, begins_at_step=state.step, begins_from=begins_at)
        say = (lambda _: None) if watcher is None else watcher.say
        say(describe_adam(parts.optimizer))
        is_shared = plan.layout.tensor_model_parallel_size * plan.layout.context_parallel_size > 1
        if is_shared and (note := queue_note(gpu_generation())):
            say(f"WARNING: {note}")
        if plan.data.document_isolation == "full" or plan.layout.context_parallel_size > 1:
            say(f"isolation holds: {require_isolation(parts.model, plan, groups)}")
        if plan.stage != "pretrain" and newest is None:  # what it starts from; pretraining starts from noise
            before = validate(parts)
            say(f"before the first step  {describe_validation(plan.stage, before)}")
            if is_main:
                write_json(folder.before_file, {"validation": before})
        with (
            contextlib.closing(parts),
            watcher or contextlib.nullcontext(),
            Saver(parts, folder.checkpoints, say=say, waits=waits) as saver,
            StepTrace(parts, folder.path / "profile", say=say) as trace,
            collecting_every(plan.execution.gc_interval_steps) as collect,
            _naming_the_batch(folder, plan),
        ):
            outcome = train(
                parts,
                state,
                saver=saver,
                watcher=watcher,
                trace=trace,
                stop=stop,
                collect=collect,
                waits=waits,
                beat=beat,
            )
        if outcome.reason == "finished" and is_main:
            ledger = [row.to_json() for row in parts.ledger()]
            write_json(folder.stage_file, _stage_facts(plan, folder, outcome) | {"ledger": ledger})
        dist.barrier()
    return outcome


def _load_reference(
    source: RolloutSource, plan: StagePlan, folder: StageFolder, groups: ProcessGroupCollection
) -> None:
    """Gives an rl stage's reference the weights that the stage began with, when it goes on too."""
    if plan.rl is None or not plan.rl.has_reference:
        return
    path = parent_checkpoint(folder.run_root, plan)
    assert path is not None, "an rl stage begins with weights"
    require_whole(path, look=damage_seen_by_all_ranks)
    source.load_reference(lambda model: load_weights(path, model, groups, new_tokens=plan.new_tokens))


@contextlib.contextmanager
def _naming_the_batch(folder: StageFolder, plan: StagePlan) -> Iterator[None]:
    """Adds to an error of a step the command that shows what the step has read."""
    try:
        yield
    except NonFiniteError as error:
        verb, what, option = ("trace", "documents", " --text") if plan.rl is None else ("rollouts", "completions", "")
        command = f"megatron-ext {verb} {shlex.quote(str(folder.path))} --step {error.step}{option}"
        raise TrainingError(f"{error}\n  Their {what}: {command}") from None


def _watcher(
    folder: StageFolder, plan: StagePlan, state: TrainState, begins_at: Path | None, places: Sequence[Place]
) -> Watcher:
    watcher = Watcher(folder.metrics_file, plan, state, last_step=last_step_of(plan), places=places)
    if begins_at is not None:
        watcher.say(describe_resume(begins_at, plan))
    return watcher


def _stage_facts(plan: StagePlan, folder: StageFolder, outcome: Outcome) -> dict[str, object]:
    """What a finished stage says of itself; the same run interrupted and resumed says the same."""
    last = read_last(folder.metrics_file)
    return {
        "stage_id": plan.stage_id,
        "stage": plan.stage,
        "meaning": plan.meaning,
        "parent": plan.behind.stage_id if plan.behind is not None else None,
        "state": outcome.state.to_json(),
        "checkpoint": f"checkpoints/step_{outcome.state.step}",
        "tokenizer_fingerprint": plan.data.tokenizer_fingerprint,
        **({"new_tokens": plan.new_tokens.model_dump()} if plan.new_tokens is not None else {}),
        **({"chat_template": chat_template_of(plan)} if plan.stage != "pretrain" else {}),
        "loss": last.get("loss"),
        "validation": last.get("validation"),
    }
