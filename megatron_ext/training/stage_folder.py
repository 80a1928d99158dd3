"""The folder of one stage, and who may write to it: `<run-root>/stages/<stage-id>/`.

- `plan.json`: what is done here; the latest placement
- `metrics.jsonl`: one line a step; `tensorboard/` holds the same
- `runs.jsonl`: one line a run: when, from which step, with which code, packages and machine (run_record.py)
- `checkpoints/step_N/`
- `exit.json`: how the last run ended
- `stage.json`: written last, its presence means finished
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from data_tools.atomic_files import take_folder, write_atomically
from data_tools.errors import DataError, RecipeError
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.checkpoint_facts import differing_meaning


class StageFolder:
    """Paths and guards of a stage's folder.

    Args:
        run_root: Folder that holds `stages/`.
        plan: The stage.
    """

    def __init__(self, run_root: Path, plan: StagePlan) -> None:
        self.run_root = run_root
        self.path = run_root / "stages" / plan.stage_id
        self.plan_file = self.path / "plan.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.stage_file = self.path / STAGE_FILE
        self.exit_file = self.path / "exit.json"
        self.before_file = self.path / "before.json"  # held-out loss or pass rate of the weights that it began with
        self.checkpoints = self.path / "checkpoints"

    @property
    def is_finished(self) -> bool:
        """Whether the stage has trained to its end."""
        return self.stage_file.is_file()

    def check(self, plan: StagePlan) -> None:
        """Refuses a folder that belongs to something else. Reads only.

        Args:
            plan: What is about to run.

        Raises:
            RecipeError: The folder holds a run with another meaning.
        """
        if not self.plan_file.is_file():
            return
        try:
            meaning = json.loads(self.plan_file.read_text())["meaning"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise DataError(
                f"{self.plan_file}: damaged: it holds no stage plan. It is written anew from the recipe, and every "
                f"checkpoint has its own; remove it: rm {self.plan_file}"
            ) from None
        lines = differing_meaning(meaning, plan)
        if lines:
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
            SetupError: Another process is training this stage, or the disk has no locks by which that could be told.
        """
        busy = "another process is training this stage. Wait for it, or give --run-root another folder."
        lock = take_folder(self.path, busy=busy)
        self.exit_file.unlink(missing_ok=True)
        write_json(self.plan_file, plan.model_dump(mode="json"))
        return lock


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
