"""From a checkpoint's folder to its lineage: every stage behind it that lies in the same run root is read.

Nothing is guessed: what a file does not say is None, and a sentence in `unknown` says so.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from data_tools.errors import DataError
from megatron_ext.datasets.ledger import LedgerRow, checkpoint_at, read_ledger
from megatron_ext.plan.lineage import RUNS_FILE, STAGE_FILE
from megatron_ext.plan.meaning import canonical_json, stage_id
from megatron_ext.plan.stage_plan import ChainStage, StagePlan
from megatron_ext.recipe.locate import shown
from megatron_ext.study.lineage.lines import read_lines, read_object
from megatron_ext.study.lineage.record import (
    CheckpointFacts,
    FileFact,
    Lineage,
    RunFacts,
    StageFacts,
    TokenizerFacts,
)
from megatron_ext.study.lineage.results import evaluations_of, exports_of
from megatron_ext.study.lineage.sources import sources_of
from megatron_ext.training.file_list import read_file_list, weights_fingerprint


def read_lineage(path: Path, *, asked: str | None = None) -> Lineage:
    """The lineage of a checkpoint.

    Args:
        path: A `step_N` folder, or a stage's folder, of which the newest checkpoint counts.
        asked: How the user named it.

    Raises:
        DataError: There is no checkpoint, or its own plan cannot be read.
    """
    checkpoint = Path(shown(checkpoint_at(path).absolute()))
    plan = read_plan(checkpoint / "plan.json")
    unknown: list[str] = []
    stages = [
        _stage_behind(stage, checkpoint, unknown) for stage in (plan.behind.chain if plan.behind is not None else ())
    ]
    stages.append(_stage(plan, _folder_of(checkpoint), checkpoint, None, unknown))
    _compare_weights(stages, unknown)
    return Lineage(asked=asked or str(path), checkpoint=str(checkpoint), stages=tuple(stages), unknown=tuple(unknown))


def read_plan(file: Path) -> StagePlan:
    """A stage's plan.

    Raises:
        DataError: It is not there, or not of this version.
    """
    try:
        return StagePlan.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; name a stage's folder, or one of its checkpoints/step_N") from None
    except ValidationError:
        raise DataError(f"{file}: damaged, or of another version of this project; read it with that one") from None


def _folder_of(checkpoint: Path) -> Path:
    """The stage's folder around a checkpoint; the checkpoint itself where it was copied away from it."""
    stage = checkpoint.absolute().parents[1]
    return Path(shown(stage)) if (stage / "plan.json").is_file() else checkpoint


def _stage_behind(stage: ChainStage, checkpoint: Path, unknown: list[str]) -> StageFacts:
    folder = Path(shown(checkpoint.absolute().parents[2] / stage.stage_id))
    try:
        last = _last_checkpoint(folder)
        plan = read_plan(last / "plan.json")
    except DataError as error:
        unknown.append(f"{stage.stage_id}: only what later stages say of it is known: {error}")
        return _without_folder(stage)
    if not (folder / STAGE_FILE).is_file():
        unknown.append(f"{stage.stage_id}: not finished in {folder}: its newest checkpoint stands here")
    return _stage(plan, folder, last, stage, unknown)


def _last_checkpoint(folder: Path) -> Path:
    """The checkpoint that a finished stage names, else its newest one."""
    named = folder / str(read_object(folder / STAGE_FILE).get("checkpoint"))
    return named if named.is_dir() else checkpoint_at(folder)


def _without_folder(stage: ChainStage) -> StageFacts:
    return StageFacts(
        stage_id=stage.stage_id,
        stage=stage.stage_id.split("-")[0],
        recipe=stage.recipe,
        gives=stage.gives,
        planned_steps=stage.total_steps,
        planned_tokens=stage.total_tokens,
        folder=None,
    )


def _stage(plan: StagePlan, folder: Path, checkpoint: Path, link: ChainStage | None, unknown: list[str]) -> StageFacts:
    meaning_sha256 = hashlib.sha256(canonical_json(plan.meaning).encode()).hexdigest()
    has_folder = folder != checkpoint
    if not has_folder:
        unknown.append(f"{plan.stage_id}: {checkpoint} lies in no stage's folder: no runs or evaluations are known")
    runs = read_lines(folder / RUNS_FILE, RunFacts, unknown)
    _say_unknown_runs(plan, folder, runs, unknown)
    facts = _checkpoint(checkpoint, folder, unknown)
    return StageFacts(
        stage_id=plan.stage_id,
        stage=plan.stage,
        recipe=plan.recipe,
        gives=link.gives if link is not None else None,
        planned_steps=plan.batch.total_steps,
        planned_tokens=plan.batch.total_tokens,
        folder=str(folder) if has_folder else None,
        is_finished=(folder / STAGE_FILE).is_file() if has_folder else None,
        meaning=plan.meaning,
        meaning_sha256=meaning_sha256,
        is_id_of_meaning="-provisional-" in plan.stage_id or stage_id(plan.meaning) == plan.stage_id,
        model=plan.model.name,
        parameters=plan.model_size.total_parameters,
        precision=plan.precision,
        seed=plan.seed,
        layout=plan.layout.model_dump(),
        tokenizer=_tokenizer(plan),
        checkpoint=facts,
        runs=runs,
        sources=sources_of(plan, _ledger(checkpoint, unknown), unknown),
        evaluations=evaluations_of(folder, facts.weights if facts is not None else None, unknown),
        exports=exports_of(folder, unknown),
    )


def _say_unknown_runs(plan: StagePlan, folder: Path, runs: tuple[RunFacts, ...], unknown: list[str]) -> None:
    if not runs:
        unknown.append(
            f"{plan.stage_id}: code, packages, hardware and date were not recorded: {folder / RUNS_FILE} is not there "
            "(trained before it was kept, or copied without it)"
        )
    elif first := min(run.begins_at_step for run in runs):
        unknown.append(f"{plan.stage_id}: who trained the steps before step {first + 1} was not recorded")
    for run in runs:
        if run.code.commit is None:
            unknown.append(f"{plan.stage_id}: the code of {run.started} was no git checkout: known by its sha256 alone")
        elif run.code.changed:
            unknown.append(
                f"{plan.stage_id}: {len(run.code.changed)} files of the code of {run.started} differed from commit "
                f"{run.code.commit[:12]}: what stood in them is known by the sha256 alone"
            )


def _tokenizer(plan: StagePlan) -> TokenizerFacts:
    template = (plan.rl or plan.sft).chat_template_sha256 if plan.rl or plan.sft else None  # type: ignore[union-attr]
    return TokenizerFacts(
        folder=plan.data.tokenizer,
        fingerprint=plan.data.tokenizer_fingerprint,
        vocab_size=plan.data.tokenizer_vocab_size,
        chat_template_sha256=template or None,
    )


def _checkpoint(path: Path, folder: Path, unknown: list[str]) -> CheckpointFacts | None:
    try:
        files = read_file_list(path)
        facts = json.loads((path / "state.json").read_bytes())
        state = facts["state"]
        finished = read_object(folder / STAGE_FILE)
        return CheckpointFacts(
            path=str(path),
            step=state["step"],
            is_last=finished.get("checkpoint") == f"checkpoints/{path.name}" if finished else None,
            weights=weights_fingerprint(path),
            bytes=sum(file["bytes"] for file in files.values()),
            backend=facts["backend"],
            processed_tokens=state["consumed_tokens"],
            trained_tokens=state["trained_tokens"],
            sampled_tokens=state.get("sampled_tokens", 0),
            plan_sha256=hashlib.sha256((path / "plan.json").read_bytes()).hexdigest(),
            files={name: FileFact(path=str(path / name), **file) for name, file in sorted(files.items())},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        unknown.append(f"{path}: files.json or state.json cannot be read ({error}): its files are not known")
        return None


def _ledger(checkpoint: Path, unknown: list[str]) -> list[LedgerRow] | None:
    try:
        return read_ledger(checkpoint)
    except DataError as error:
        unknown.append(f"what was read is not known: {error}")
        return None


def _compare_weights(stages: list[StageFacts], unknown: list[str]) -> None:
    """Says where a stage began with other bytes than those that lie in the stage before it now."""
    for before, after in pairwise(stages):
        taken = next((run.begins_from for run in after.runs if run.begins_at_step == 0), None)
        if before.checkpoint is None or not after.runs:
            continue
        if taken is None:
            unknown.append(f"{after.stage_id}: which bytes of {before.stage_id} it began with was not recorded")
        elif taken.stage_id == before.stage_id and taken.weights != before.checkpoint.weights:
            unknown.append(
                f"{after.stage_id}: began with weights {taken.weights[:12]} of {before.stage_id}, and "
                f"{before.checkpoint.path} holds {before.checkpoint.weights[:12]} now: it was trained again since"
            )
