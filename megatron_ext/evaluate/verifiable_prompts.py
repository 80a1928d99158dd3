"""The prompts of a verifiable task: of a JSONL file, or those that an rl stage holds out."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, get_args

from data_tools.chat_template_files import template_source
from data_tools.errors import DataError
from data_tools.prompts import PromptEncoder, PromptFile, content_id, read_prompts
from data_tools.records import Domain
from megatron_ext.evaluate.tasks import TaskRequest
from megatron_ext.plan.rl_prompts import read_prompt_set
from megatron_ext.plan.stage_plan import StagePlan

_DOMAINS = get_args(Domain)


def prompts_of(request: TaskRequest, tokenizer: Path) -> tuple[PromptFile, frozenset[int]]:
    """The prompts of a task, and the ids at which answers end.

    Args:
        request: What was asked; its argument is the file, or the folder of an rl stage.
        tokenizer: Folder of the checkpoint's tokenizer.

    Raises:
        DataError: A file is missing or of another schema, or there is no chat template.
    """
    template = request.options.chat_template
    try:
        source, _ = template_source(tokenizer, Path(template) if template else None)
    except DataError:
        if template:
            raise
        raise DataError(
            f"{tokenizer}: holds no chat template, so its stage was not taught to answer; name a checkpoint of an sft "
            "stage, or a template that the questions are put into: --set chat_template=FILE, in a suite "
            "options: {chat_template: FILE}."
        ) from None
    path = Path(request.argument)
    if path.is_dir():
        return _held_out(path, tokenizer, source)
    return _read(path, tokenizer, source, request.domain, request.options.scorer)


@functools.lru_cache(maxsize=8)  # checked before torch is imported, then run
def _read(path: Path, tokenizer: Path, template: str, domain: str, scorer: str) -> tuple[PromptFile, frozenset[int]]:
    encoder = PromptEncoder(tokenizer, template)
    known: Any = domain if domain in _DOMAINS else "general"
    return read_prompts(path, encoder, domain=known, scorer=scorer), encoder.stop_ids


@functools.lru_cache(maxsize=8)
def _held_out(stage: Path, tokenizer: Path, template: str) -> tuple[PromptFile, frozenset[int]]:
    """The prompts that an rl stage holds out, of all its sources."""
    plan = rl_plan_of(stage)
    assert plan.rl is not None, "looked at before"
    found = read_prompt_set(
        plan.rl.options, data_root=plan.rl.data_root, tokenizer=str(tokenizer), template=template, seed=plan.seed
    )
    for source, got in zip(plan.data.sources, found.sources, strict=True):
        if got.validation_data_id != source.validation_data_id:
            raise DataError(
                f"{stage}: source {source.source} holds out other prompts now than the stage did; restore it."
            )
    rows = tuple(row for source in found.sources for row in source.held_out)
    return PromptFile(rows, content_id(rows), {}, "", {}), found.stop_ids


def rl_plan_of(stage: Path) -> StagePlan:
    """The plan of an rl stage.

    Raises:
        DataError: The folder is none of an rl stage.
    """
    file = stage / "plan.json"
    plan = StagePlan.model_validate_json(file.read_bytes()) if file.is_file() else None
    if plan is None or plan.rl is None:
        raise DataError(
            f"{stage}: is no folder of an rl stage, whose held-out prompts it would name; name a JSONL file."
        )
    return plan
