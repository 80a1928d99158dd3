"""Writing checkpoints: one at a time, in place or while training goes on, complete or not at all.

A save has three parts. *Begin* (all ranks) plans the files with Megatron-Core; with
`checkpoint.async_save` it also copies every tensor, so that the next step cannot change what is
written. *Write* (each rank alone) writes and hashes this rank's files; it calls no collective, and
runs in a thread when training goes on meanwhile. *Finish* (all ranks) agrees on errors, writes core's
metadata and `files.json`, and renames the folder to its final name.

A thread of this process and not core's `AsyncCallsQueue`: docs/explanation/decisions/0006-async-save.md.
"""

from __future__ import annotations

import functools
import json
import queue
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async

from data_tools.atomic_files import sync_folder, write_atomically
from data_tools.errors import SetupError, TrainingError, UserError
from megatron_ext.datasets.ledger import LEDGER, ledger_json
from megatron_ext.models.backends import choose_backend
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.agreement import answer_of_main_rank, raise_on_all_ranks
from megatron_ext.runtime.device import device
from megatron_ext.runtime.parallel import Waits
from megatron_ext.training.chat_template import chat_template_of
from megatron_ext.training.checkpoint import sharded_random_state, sharding_metadata
from megatron_ext.training.checkpoint_facts import layout_of
from megatron_ext.training.file_list import (
    TOKENIZER_FILES,
    FileFacts,
    checkpoints_of,
    describe_files,
    write_file_list,
)
from megatron_ext.training.optimizer_state import OptimizerFormat, count_updates
from megatron_ext.training.parts import Parts, gather_weights
from megatron_ext.training.state import TrainState


class Saver:
    """Saves when the plan says so; at most one checkpoint is being written at a time.

    All ranks must enter it, and call it alike. Leaving it waits for what is being written.

    Args:
        parts: What is trained.
        folder: The stage's `checkpoints` folder.
        say: Tells people; does nothing on all ranks but the main one.
        waits: How long ranks wait for each other.
    """

    def __init__(self, parts: Parts, folder: Path, *, say: Callable[[str], None], waits: Waits) -> None:
        self._parts, self._folder, self._say, self._waits = parts, folder, say, waits
        self._in_flight: CheckpointWrite | None = None
        self._seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # All ranks agree on a TrainingError; after any other error some may not be there to finish.
        if error is None or isinstance(error, TrainingError):
            self._finish()

    def after_step(self, state: TrainState, *, is_last: bool) -> None:
        """Begins, goes on with, or finishes a checkpoint.

        All ranks must call this after every step.

        Args:
            state: The counters after the step.
            is_last: Whether the run ends here; such a checkpoint is written at once and fully reshardable.
        """
        began = time.perf_counter()
        plan = self._parts.plan
        if self._in_flight is not None and self._in_flight.is_written_on_all_ranks():
            self._finish()
        if is_last or state.step % plan.cadence.checkpoint_interval_steps == 0:
            if self._in_flight is not None:
                self._say(f"step {state.step}: waits for the checkpoint of step {self._in_flight.step} to be written")
                self._finish()
            in_background = plan.execution.async_save and not is_last
            is_sharded = plan.layout.use_distributed_optimizer and not is_last
            with self._waits.saving():
                self._in_flight = CheckpointWrite(
                    self._folder,
                    self._parts,
                    state,
                    optimizer_format=plan.execution.optimizer_format if is_sharded else "fully_reshardable",
                    in_background=in_background,
                )
            if not in_background:
                self._finish()
        self._seconds += time.perf_counter() - began

    def keep(self, state: TrainState) -> None:
        """Writes the checkpoint of a step that is behind, unless it is written or none was trained.

        All ranks must call this, before an error that they have agreed on ends the run.

        Args:
            state: The counters after that step; nothing has changed since.
        """
        self._finish()
        if state.step and not answer_of_main_rank((self._folder / f"step_{state.step}").exists()):
            self.after_step(state, is_last=True)
            self._say(f"step {state.step}: saved, to go on from")

    def take_seconds(self) -> float:
        """Seconds that training stood still for saving since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _finish(self) -> None:
        if self._in_flight is None:
            return
        write, self._in_flight = self._in_flight, None
        with self._waits.saving():
            write.finish()
        if dist.get_rank() == 0:
            cadence = self._parts.plan.cadence
            remove_old_checkpoints(
                self._folder,
                keep_last=cadence.checkpoint_keep_last,
                keep_every_steps=cadence.checkpoint_keep_every_steps,
            )


class CheckpointWrite:
    """One checkpoint on its way to `folder/step_N`; building it begins the save.

    All ranks must build it.

    Args:
        folder: The stage's `checkpoints` folder.
        parts: What is trained.
        state: How far it has come.
        optimizer_format: See optimizer_state.py.
        in_background: Whether training goes on before `finish`.

    Raises:
        SetupError: The folder cannot be written, or the tokenizer's files cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        parts: Parts,
        state: TrainState,
        *,
        optimizer_format: OptimizerFormat = "fully_reshardable",
        in_background: bool = False,
    ) -> None:
        self.step = state.step
        self._final = folder / f"step_{state.step}"
        self._writing = folder / f".writing_step_{state.step}"
        self._error: SetupError | None = None
        self._described: dict[str, FileFacts] = {}
        self._small_files: dict[str, bytes] = {}
        self._on_main_rank(lambda: self._begin(parts, state, optimizer_format))
        self._request = _plan_files(self._writing, parts, optimizer_format)
        self._buckets = _snapshot(self._request, is_copied=in_background)
        self._thread = threading.Thread(target=self._write, name=f"save step {state.step}")
        if in_background:
            self._thread.start()
        else:
            self._thread.run()

    def is_written_on_all_ranks(self) -> bool:
        """Whether `finish` would not have to wait. All ranks must call this."""
        written = torch.tensor(int(not self._thread.is_alive()), device=device())
        dist.all_reduce(written, op=dist.ReduceOp.MIN)
        return bool(written)

    def finish(self) -> Path:
        """Completes the checkpoint and gives it its name.

        All ranks must call this.

        Returns:
            The finished checkpoint.

        Raises:
            SetupError: Some rank could not write its part; the folder keeps its temporary name.
        """
        if self._thread.ident is not None:
            self._thread.join()
        raise_on_all_ranks(self._error)
        for finalize in self._request.finalize_fns:
            finalize()
        of_ranks: list[dict[str, FileFacts]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(of_ranks, self._described)
        described = {name: facts for of_rank in of_ranks for name, facts in of_rank.items()}
        self._on_main_rank(lambda: _complete_folder(self._writing, self._final, self._small_files, described))
        return self._final

    def _begin(self, parts: Parts, state: TrainState, optimizer_format: OptimizerFormat) -> None:
        self._small_files = _small_files(parts, state, optimizer_format)
        _start_folder(self._writing)

    def _write(self) -> None:
        """Writes and hashes this rank's files; keeps an error for `finish`, which tells all ranks."""
        try:
            if self._request.async_fn is not None:
                rank, _, results = self._request.async_fn_args
                self._request.async_fn(rank, self._buckets, results)
                result = results.get()
                if isinstance(result, Exception):
                    raise result
                results.put(result)
            files = [Path(file) for file, _, _ in self._buckets]
            self._buckets = []
            self._described = describe_files(self._writing, files)
        except Exception as error:  # a thread's error would be lost
            self._error = _cannot_write(self._writing, error)

    def _on_main_rank(self, act: Callable[[], None]) -> None:
        error: UserError | None = None
        if dist.get_rank() == 0:
            try:
                act()
            except UserError as caught:  # the ledger reads the data, which may be damaged
                error = caught
            except OSError as caught:
                error = _cannot_write(self._writing, caught)
        raise_on_all_ranks(error)


def remove_old_checkpoints(folder: Path, *, keep_last: int, keep_every_steps: int | None) -> None:
    """Deletes all but the newest `keep_last` checkpoints and those at multiples of `keep_every_steps`.

    Only the main rank may call this.
    """
    for path in checkpoints_of(folder)[:-keep_last]:
        step = int(path.name.removeprefix("step_"))
        if keep_every_steps is None or step % keep_every_steps:
            shutil.rmtree(path)


def remove_unfinished(folder: Path) -> None:
    """Deletes what a killed run was writing. Only the main rank may call this."""
    for path in folder.glob(".writing_step_*"):
        shutil.rmtree(path)


def _start_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _small_files(parts: Parts, state: TrainState, optimizer_format: OptimizerFormat) -> dict[str, bytes]:
    """The files that the main rank writes for all, as they are now."""
    facts = {
        "state": state.to_json(),
        "cursor": parts.cursor.state_dict(),
        "layout": layout_of(parts.plan),
        "backend": choose_backend(parts.plan).name,
        "optimizer": {"format": optimizer_format, "updates": count_updates(parts.optimizer)},
    }
    return {
        "state.json": json.dumps(facts, indent=1).encode(),
        "plan.json": parts.plan.model_dump_json(indent=1).encode(),
        LEDGER: ledger_json(parts.ledger()).encode(),
        **_tokenizer_files(parts.plan.data.tokenizer),
        **_chat_template_files(parts.plan),
    }


def _chat_template_files(plan: StagePlan) -> dict[str, bytes]:
    """The chat template that the stage trains on, where tokenizers' folders have it."""
    template = chat_template_of(plan)
    return {} if template is None else {"tokenizer/chat_template.jinja": template.encode()}


@functools.cache  # read at the first save; later ones do not depend on the folder any more
def _tokenizer_files(folder: str) -> dict[str, bytes]:
    try:
        return {f"tokenizer/{name}": (Path(folder) / name).read_bytes() for name in TOKENIZER_FILES}
    except OSError as error:
        raise SetupError(
            f"{folder}: the tokenizer cannot be read ({error}), and no checkpoint is written without it.\n"
            "  Put its files back, and run again to go on from the newest checkpoint."
        ) from None


def _plan_files(folder: Path, parts: Parts, optimizer_format: OptimizerFormat) -> Any:
    """Has core decide which rank writes what; nothing is written yet."""
    if filesystem_async._results_queue is None:
        # Core would start a manager process on every rank for this queue, which imports torch again
        # (573 MB measured) and lives on for ever when its parent is killed. Writer and reader are this process.
        filesystem_async._results_queue = queue.Queue()
    metadata = sharding_metadata(parts, optimizer_format)
    gather_weights(parts.model)
    model = parts.model.module.sharded_state_dict(metadata=metadata)
    everything = {
        "model": model,
        "optimizer": parts.optimizer.sharded_state_dict(model, metadata=metadata),
        "random_state": sharded_random_state(parts),
    }
    return dist_checkpointing.save(everything, str(folder), async_sharded_save=True, async_strategy="mcore")


def _snapshot(request: Any, *, is_copied: bool) -> list[Any]:
    """This rank's files as (path, name, (bytes, tensors)), the tensors in host memory.

    Args:
        request: Core's plan of the save.
        is_copied: Whether tensors that live in host memory are copied too: `.cpu()` gives them as they
            are, and the next step would change them under the writer's hands.
    """
    if request.async_fn is None:
        return []
    buckets: list[Any] = request.preload_fn()
    if not is_copied:
        return buckets
    of_model = request.async_fn_args[1]
    return [
        (file, name, (plain, [(item, t.clone() if old.device == t.device else t) for (item, t), (_, old) in pairs]))
        for (file, name, (plain, tensors)), (_, _, (_, old_tensors)) in zip(buckets, of_model, strict=True)
        for pairs in [zip(tensors, old_tensors, strict=True)]
    ]


def _complete_folder(
    writing: Path, final: Path, small_files: dict[str, bytes], described: dict[str, FileFacts]
) -> None:
    (writing / "tokenizer").mkdir()
    for name, content in small_files.items():
        write_atomically(writing / name, content)
    of_main_rank = [path for path in writing.rglob("*") if path.is_file() and path.suffix != ".distcp"]
    write_file_list(writing, described | describe_files(writing, of_main_rank))
    writing.rename(final)
    sync_folder(final.parent)


def _cannot_write(folder: Path, error: Exception) -> SetupError:
    parent = next(path for path in folder.parents if path.is_dir())
    free = shutil.disk_usage(parent).free
    return SetupError(
        f"{folder}: cannot be written ({error}); {free:,} bytes are free there.\n"
        "  The checkpoints before it are untouched. Make room or mend the disk, and run again to go on from the newest."
    )
