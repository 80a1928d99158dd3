"""Unfinished stages of the same recipe whose data are other ones now: the next run does not go on with them.

A stage's id follows from what its data hold. Data that are replaced after a stop make another stage of the same
command, which would otherwise begin at step 1 without a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.file_list import checkpoints_of


def notes_on_replaced_data(run_root: Path, plan: StagePlan) -> list[str]:
    """A sentence for each unfinished stage that this recipe began on other data; files of others are passed over.

    Args:
        run_root: Folder that holds `stages/`.
        plan: What is about to run; a stage that has a checkpoint goes on, and nothing is said.
    """
    stages = run_root / "stages"
    if checkpoints_of(stages / plan.stage_id / "checkpoints"):
        return []
    now = {source.source: source.data_id for source in plan.data.sources}
    notes = []
    for file in sorted(stages.glob("*/plan.json")):
        then = {} if (file.parent / STAGE_FILE).exists() else _data_ids(file, plan)
        other = [name for name, data_id in then.items() if now.get(name, data_id) != data_id]
        if other and (checkpoints := checkpoints_of(file.parent / "checkpoints")):
            sources = ", ".join(
                f"source {name} held {then[name][:16]}… and holds {now[name][:16]}… now" for name in other
            )
            notes.append(
                f"{file.parent}: an unfinished stage of {plan.recipe} at step {checkpoints[-1].name[5:]}, on other "
                f"data: {sources}. This run begins a new stage at step 1; restore the data to go on with that one."
            )
    return notes


def _data_ids(file: Path, plan: StagePlan) -> dict[str, str]:
    """Of each source of a recorded stage; none where the file is of another recipe, or none of ours."""
    try:
        recorded: Any = json.loads(file.read_bytes())
        if (recorded["stage"], Path(recorded["recipe"]).resolve()) != (plan.stage, Path(plan.recipe).resolve()):
            return {}
        return {str(source["source"]): str(source["data_id"]) for source in recorded["data"]["sources"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
