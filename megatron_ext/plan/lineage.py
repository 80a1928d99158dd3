"""The stages behind a recipe's, and what a stage must have in common with the one that it continues."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from data_tools.errors import RecipeError
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.stage_plan import ChainStage, ParentPlan, SchedulePlan, SourcePlan, SourceRead, StagePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems

CONTINUE: KeyPath = ("continue",)

STAGE_FILE = "stage.json"
"""Beside `checkpoints`: its presence means that the stage is finished, so while it is there no run trains on."""

RUNS_FILE = "runs.jsonl"
"""Beside it: a line for each run that trained the stage (training/run_record.py)."""

EXPORTS_FILE = "exports.jsonl"
"""Beside it: a line for each export of its checkpoints (convert/export_record.py)."""


def read_stage_plan(loaded: LoadedRecipe, stage_id: str, run_root: Path, *, key: KeyPath = CONTINUE) -> StagePlan:
    """The plan of a stage that is named by its id.

    Args:
        loaded: Names it.
        stage_id: The id.
        run_root: Folder that holds `stages/`.
        key: Where it is named: `continue` or `init_from`.

    Raises:
        RecipeError: There is no such stage in this place's run_root.
    """
    file = run_root / "stages" / Path(stage_id).name / "plan.json"
    place = f"{loaded.origin(key)}: {key[0]}"
    if "/" in stage_id:
        raise RecipeError(
            f"{place}: {stage_id}: a stage is named by its id alone and looked for in {file.parents[1]}, or by its "
            f"recipe (a path ending in .yaml); write {Path(stage_id).name}, with --run-root where it lies elsewhere"
        )
    if not file.is_file():
        there = ", ".join(sorted(folder.name for folder in file.parents[1].glob("*/"))) or "none"
        raise RecipeError(
            f"{place}: {stage_id}: no such stage in {file.parents[1]}; there are: {there}. "
            "Name one of them, or the parent's recipe (a path ending in .yaml)"
        )
    try:
        return StagePlan.model_validate_json(file.read_bytes())
    except ValidationError:
        raise RecipeError(f"{place}: {file}: damaged, or of another version; name the parent's recipe") from None


def unfinished_parent(plan: StagePlan, *, run_root: Path) -> str | None:
    """A sentence where the stage that a plan begins from is not finished in this place, so that it does not run yet."""
    if plan.behind is None or plan.behind.is_provisional:
        return None
    parent = plan.behind.chain[-1]
    folder = run_root / "stages" / parent.stage_id
    if (folder / STAGE_FILE).is_file():
        return None
    key = "continue" if plan.parent is not None else "init_from"
    state = "is begun and not finished" if (folder / "plan.json").is_file() else "is not trained"
    return f"{key}: {parent.stage_id} ({parent.recipe}) {state} in {run_root}; a run takes it when it is finished."


def chain_behind(parent: StagePlan, *, gives: Literal["everything", "weights"] = "everything") -> ParentPlan:
    """What lies behind a stage that continues `parent`, or begins with its weights."""
    before = parent.behind
    read = {source.data_id: source for source in before.sources} if before is not None else {}
    read |= {source.data_id: _read_of(source, parent, read.get(source.data_id)) for source in parent.data.sources}
    if gives == "weights":
        anew = {"tokens_read": 0, "passes": 0.0, "is_moved": False, "sequence_lengths": ()}
        for data_id, one in read.items():
            read[data_id] = one.model_copy(update=anew | {"passes_before_anew": one.passes_before_anew + one.passes})
    stage = ChainStage(
        stage_id=parent.stage_id,
        recipe=parent.recipe,
        total_steps=parent.batch.total_steps,
        total_tokens=parent.batch.total_tokens,
        gives=gives,
    )
    return ParentPlan(chain=(*(before.chain if before is not None else ()), stage), sources=tuple(read.values()))


def _read_of(source: SourcePlan, stage: StagePlan, earlier: SourceRead | None) -> SourceRead:
    """What a chain has read of one source at the end of a stage that reads it."""
    length = stage.batch.sequence_length
    phases = stage.data.all_phases()
    cursors = {given.cursor for phase in phases for given in phase.sources if given.source == source.source}
    lengths = earlier.sequence_lengths if earlier is not None and "replay" not in cursors else ()
    return SourceRead(
        source=source.source,
        domain=source.domain,
        data_id=source.data_id,
        tokens=source.tokens,
        tokens_read=source.tokens_before + source.samples * length,
        passes=source.tokens_before / source.pass_tokens(length) + source.epochs,
        is_moved=cursors != {"continue"} or (earlier is not None and earlier.is_moved),
        sequence_lengths=(*(other for other in lengths if other != length), length),
        passes_before_anew=earlier.passes_before_anew if earlier is not None else 0.0,
    )


def check_kind(loaded: LoadedRecipe, stage: str) -> None:
    """Refuses to continue a stage of another kind: its cursors and its learning rate count other things.

    Raises:
        RecipeError: With what to write.
    """
    recipe = loaded.recipe
    if stage != recipe.stage:
        raise RecipeError(
            f"{loaded.origin(CONTINUE)}: continue: {recipe.parent}: its stage is {stage}, and this one is "
            f"{recipe.stage}; only its weights can be taken: write init_from instead of continue"
        )


def check_schedule(loaded: LoadedRecipe, schedule: SchedulePlan, before: SchedulePlan, problems: Problems) -> None:
    """Refuses a continuation whose learning rate is not that of the stage before, or has none left."""
    if before.style != "constant" and before.horizon_tokens is None:
        problems.add(
            loaded.origin(CONTINUE),
            CONTINUE,
            f"{loaded.recipe.parent}: its learning rate ends with its own budget; set schedule.horizon_tokens there, "
            "to the tokens of the whole chain",
        )
        return
    mine = schedule.model_dump()
    for key, theirs in before.model_dump().items():
        if mine[key] != theirs and key == "warmup_samples" and (ratio := loaded.recipe.schedule.warmup_ratio):
            warmups = (count * before.sample_tokens for count in (mine[key], theirs))
            message = "{:g}: a warmup of {:,} tokens, and {:,} in the stage that this one continues; write the same"
            path: KeyPath = ("schedule", "warmup_ratio")
            problems.add(loaded.origin(path), path, message.format(ratio, *warmups))
        elif mine[key] != theirs:
            path = ("schedule", key.replace("_samples", "_tokens"))
            unit = before.sample_tokens if key.endswith("_samples") else 1
            values = [value * unit if isinstance(value, int) else value for value in (theirs, mine[key])]
            problems.add(loaded.origin(path), path, _other(values[0], values[1]))


def check_packing(loaded: LoadedRecipe, parent: StagePlan) -> None:
    """Refuses a continuation of packed rows that are packed in another way: what its sources have is counted in rows.

    Raises:
        RecipeError: With each key that differs.
    """
    problems = Problems()
    recipe, there = loaded.recipe, parent.data
    pairs: dict[KeyPath, tuple[object, object]] = {
        ("data", "packing"): (there.packing, recipe.data.packing),
        ("data", "long_documents"): (there.long_documents, recipe.data.long_documents),
    }
    if there.packing != "none":  # documents laid end to end can be cut anew
        lengths = (parent.batch.sequence_length, recipe.training.sequence_length)
        pairs[("training", "sequence_length")] = lengths
    for path, (theirs, mine) in pairs.items():
        if theirs != mine:
            problems.add(loaded.origin(path), path, _other(theirs, mine))
    problems.raise_recipe_error()


def check_common(loaded: LoadedRecipe, plan: StagePlan, parent: StagePlan) -> None:
    """Refuses a continuation that is another model, or would read or train in another way.

    Raises:
        RecipeError: With each key that differs.
    """
    problems = Problems()
    there, here = parent.meaning, plan.meaning
    if (then := there["semantics_version"]) != (now := here["semantics_version"]):
        problems.add(
            loaded.origin(CONTINUE),
            CONTINUE,
            f"{parent.stage_id} was trained with semantics_version {then} of the numerics, and this code has {now}; "
            "train its recipe again, or go on with the code that trained it",
        )
    pairs = {
        ("precision",): (there["precision"], here["precision"]),
        ("fp8",): (there.get("fp8"), here.get("fp8")),
        ("seed",): (there["seed"], here["seed"]),
        ("data", "tokenizer"): (parent.data.tokenizer_fingerprint[:12], plan.data.tokenizer_fingerprint[:12]),
    }
    for section in ("model", "optimizer"):
        keys = there[section].keys() | here[section].keys()
        pairs |= {(section, key): (there[section].get(key), here[section].get(key)) for key in sorted(keys)}
    for path, (theirs, mine) in pairs.items():
        if theirs != mine:
            problems.add(loaded.origin(path), path, _other(theirs, mine))
    problems.raise_recipe_error()


def _other(theirs: object, mine: object) -> str:
    return f"{said(mine)}, and {said(theirs)} in the stage that this one continues; write the same"


def said(value: object) -> str:
    """A value as messages write it.

    >>> said(4096), said("M-*"), said(None)
    ('4,096', "'M-*'", 'None')
    """
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)
