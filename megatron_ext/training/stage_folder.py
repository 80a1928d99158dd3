"""The folder of one stage, and who may write to it: `<run-root>/stages/<stage-id>/`.

- `plan.json`: what is done here; the latest placement
- `metrics.jsonl`: one line a step; `tensorboard/` holds the same
- `checkpoints/step_N/`
- `exit.json`: how the last run ended
- `stage.json`: written last, its presence means finished
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import IO, Any

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError, RecipeError, SetupError
from data_tools.tokenizer import fingerprint
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.checkpoint import layout_of, read_facts


class StageFolder:
    """Paths and guards of a stage's folder.

    Args:
        run_root: Folder that holds `stages/`.
        plan: The stage.
    """

    def __init__(self, run_root: Path, plan: StagePlan) -> None:
        self.path = run_root / "stages" / plan.stage_id
        self.plan_file = self.path / "plan.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.stage_file = self.path / "stage.json"
        self.exit_file = self.path / "exit.json"
        self.checkpoints = self.path / "checkpoints"

    @property
    def is_finished(self) -> bool:
        """Whether the stage has trained to its end."""
        return self.stage_file.is_file()

    def check(self, plan: StagePlan, newest_checkpoint: Path | None) -> None:
        """Refuses a folder that belongs to something else. Reads only.

        Args:
            plan: What is about to run.
            newest_checkpoint: Where it would resume.

        Raises:
            RecipeError: The folder holds a run with another meaning, or a checkpoint in another layout.
            DataError: The checkpoint is damaged, or was trained with another tokenizer.
        """
        if self.plan_file.is_file():
            self._check_meaning(plan)
        if newest_checkpoint is not None:
            _check_layout(plan, newest_checkpoint)
            found = fingerprint(newest_checkpoint / "tokenizer")
            if found != plan.data.tokenizer_fingerprint:
                raise DataError(
                    f"{newest_checkpoint}/tokenizer: fingerprint {found[:16]} is not the tokenizer of this recipe.\n"
                    f"  data.tokenizer  {plan.data.tokenizer} has {plan.data.tokenizer_fingerprint[:16]}\n"
                    "  Point data.tokenizer at the checkpoint's tokenizer, or give --run-root another folder."
                )

    def _check_meaning(self, plan: StagePlan) -> None:
        try:
            meaning = json.loads(self.plan_file.read_text())["meaning"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RecipeError(
                f"{self.plan_file}: not a stage plan ({error}). Move the folder away, or give --run-root another one."
            ) from None
        wanted = json.loads(json.dumps(plan.meaning))
        differing = sorted(key for key in meaning.keys() | wanted.keys() if meaning.get(key) != wanted.get(key))
        if differing:
            lines = [f"  {key}: there {meaning.get(key)!r}, here {wanted.get(key)!r}" for key in differing]
            raise RecipeError(
                f"{self.plan_file}: the folder holds a run with another meaning; nothing was changed.\n"
                + "\n".join(lines)
                + "\n  Move the folder away, or give --run-root another one."
            )

    def open_for_writing(self, plan: StagePlan) -> IO[str]:
        """Takes the folder for this run and records the plan. Only the main rank may call this.

        Returns:
            The lock; the folder is free again when it is closed or the process ends.

        Raises:
            SetupError: Another process is training this stage.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise SetupError(
                f"{self.path}: another process is training this stage. Wait for it, or give --run-root another folder."
            ) from None
        self.exit_file.unlink(missing_ok=True)
        write_json(self.plan_file, plan.model_dump(mode="json"))
        return lock


def _check_layout(plan: StagePlan, checkpoint: Path) -> None:
    there, here = read_facts(checkpoint)["layout"], layout_of(plan)
    if there != here:
        lines = [f"  {key}: there {there.get(key)}, here {here[key]}" for key in here if there.get(key) != here[key]]
        raise RecipeError(
            f"{checkpoint}: was written in another layout; a run goes on in the one in which it was stopped.\n"
            + "\n".join(lines)
            + "\n  Give the parallel keys and the number of processes of before, or another --run-root."
        )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
