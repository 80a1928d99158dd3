"""Where a stage that begins from another one does: the parent's last checkpoint, named by its stage.json."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from data_tools.errors import DataError, RecipeError
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.plan.meaning import stage_id
from megatron_ext.plan.stage_plan import ChainStage, StagePlan
from megatron_ext.training.file_list import checkpoints_of


def parent_checkpoint(run_root: Path, plan: StagePlan) -> Path | None:
    """The checkpoint that a stage begins from; None where it begins with nothing. Reads only.

    Args:
        run_root: Folder that holds `stages/`.
        plan: The stage.

    Raises:
        RecipeError: The parent was not trained here, or not to its end.
        DataError: Its stage.json is damaged or another stage's, or its tokenizer or its checkpoint is not what it was.
    """
    if plan.behind is None:
        return None
    parent = plan.behind.chain[-1]
    folder = run_root / "stages" / parent.stage_id
    file = folder / STAGE_FILE
    command = _command_of(parent, run_root)
    if not file.is_file():
        is_begun = (folder / "plan.json").is_file()
        raise RecipeError(
            f"{plan.recipe}: {'continue' if plan.parent is not None else 'init_from'}: {parent.stage_id} "
            f"({parent.recipe}) is {'not finished' if is_begun else 'not trained'} in {run_root}: there is no {file}.\n"
            f"  {'Finish' if is_begun else 'Train'} it first: {command}"
        )
    facts = _read(file, command)
    _check(facts, file, plan, command)
    checkpoint: Path = folder / facts["checkpoint"]
    if not checkpoint.is_dir():
        raise DataError(f"{checkpoint}: missing, and {file} names it; {_train_again(file, command)}")
    return checkpoint


def _command_of(parent: ChainStage, run_root: Path) -> str:
    """What makes a parent: training, or the import of weights from elsewhere."""
    what, root = shlex.quote(parent.recipe), shlex.quote(str(run_root))
    if parent.stage_id.startswith("import-"):
        return f"megatron-ext import {what} --to {root}"
    return f"python -m megatron_ext.run {what} --run-root {root}"


def _check(facts: dict[str, Any], file: Path, plan: StagePlan, command: str) -> None:
    """Refuses the facts of another stage than planned; the id hashes its meaning, so the model's sizes too."""
    found, expected = {facts["stage_id"], stage_id(facts["meaning"])}, file.parent.name
    if found != {expected}:
        raise DataError(
            f"{file}: stage_id and meaning: of {', '.join(sorted(found))}, in the folder of {expected}; "
            f"{_train_again(file, command)}"
        )
    new = plan.new_tokens
    known = new.known_tokenizer_fingerprint if new is not None else plan.data.tokenizer_fingerprint
    if facts["tokenizer_fingerprint"] != known:
        raise DataError(
            f"{file}: tokenizer_fingerprint: {facts['tokenizer_fingerprint'][:12]}…, this stage reads with "
            f"{plan.data.tokenizer} ({plan.data.tokenizer_fingerprint[:12]}…); take the parent's tokenizer, "
            f"{file.parent / facts['checkpoint'] / 'tokenizer'}"
        )


def _read(file: Path, command: str) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(file.read_bytes())
        return {key: facts[key] for key in ("stage_id", "meaning", "tokenizer_fingerprint", "checkpoint")}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise DataError(f"{file}: damaged; {_train_again(file, command)}") from None


def _train_again(file: Path, command: str) -> str:
    """How a parent comes by a whole end again; as long as its stage.json is there, it counts as finished."""
    newest = next(reversed(checkpoints_of(file.parent / "checkpoints")), None)
    where = f"goes on from {newest.name}" if newest else "begins at step 1"
    return f"restore it, or let the parent write it anew (it {where}):\n    rm {file}\n    {command}"
