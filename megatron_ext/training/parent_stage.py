"""Where a stage that continues another one begins: the parent's last checkpoint, named by its stage.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_tools.errors import DataError, RecipeError
from megatron_ext.plan.stage_plan import StagePlan


def parent_checkpoint(run_root: Path, plan: StagePlan) -> Path | None:
    """The checkpoint that a stage begins from; None for the first stage of a chain. Reads only.

    Args:
        run_root: Folder that holds `stages/`.
        plan: The stage.

    Raises:
        RecipeError: The parent was not trained here, or not to its end.
        DataError: Its stage.json is damaged, or its tokenizer or its checkpoint is not what it was.
    """
    if plan.parent is None:
        return None
    parent = plan.parent.chain[-1]
    folder = run_root / "stages" / parent.stage_id
    file = folder / "stage.json"
    if not file.is_file():
        is_begun = (folder / "plan.json").is_file()
        raise RecipeError(
            f"{plan.recipe}: continue: {parent.stage_id} ({parent.recipe}) is "
            f"{'not finished' if is_begun else 'not trained'} in {run_root}: there is no {file}.\n"
            f"  {'Finish' if is_begun else 'Train'} it first: python -m megatron_ext.run {parent.recipe}"
        )
    facts = _read(file)
    if facts["tokenizer_fingerprint"] != plan.data.tokenizer_fingerprint:
        raise DataError(
            f"{file}: tokenizer_fingerprint: {facts['tokenizer_fingerprint'][:12]}…, this stage reads with "
            f"{plan.data.tokenizer} ({plan.data.tokenizer_fingerprint[:12]}…); take the parent's tokenizer, "
            f"{folder / facts['checkpoint'] / 'tokenizer'}"
        )
    checkpoint = folder / facts["checkpoint"]
    if not checkpoint.is_dir():
        raise DataError(f"{checkpoint}: missing, and {file} names it; restore it, or train the parent again")
    return checkpoint


def _read(file: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(file.read_bytes())
        return {key: facts[key] for key in ("tokenizer_fingerprint", "checkpoint")}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise DataError(f"{file}: damaged; restore it, or train the parent again") from None
