"""What of a task can be told before its stage is trained: what it needs and is not there, and what can never be judged.

An evaluation checks all of this itself, and more; by then hours may have been spent on the stage. Imports no torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.chat_template_files import shipped_template
from data_tools.dataset import find_dataset, is_built
from megatron_ext.evaluate.contamination import files_of_sources
from megatron_ext.evaluate.tasks import TaskRequest
from megatron_ext.plan.stage_plan import StagePlan


def not_there(request: TaskRequest) -> str:
    """What a task needs and this place does not have; "" where nothing is known to be missing."""
    path, template = Path(request.argument), request.options.chat_template
    if request.kind == "verifiable" and not path.is_file() and not (path / "plan.json").is_file():
        return "no such file of questions, and no folder of an rl stage"
    if (
        request.kind == "verifiable"
        and template
        and shipped_template(template) is None
        and not Path(template).is_file()
    ):
        return f"chat_template: {template}: no such file"
    if request.kind == "held-out" and request.argument and not is_built(request.argument):
        return "no such dataset"
    if request.kind == "lm-eval" and importlib.util.find_spec("lm_eval") is None:
        return "lm-eval is not installed; run: pip install 'megatron-ext[eval]'"
    return ""


@dataclass(frozen=True)
class ForeseenStage:
    """A stage that will be trained."""

    plan: StagePlan

    @functools.cached_property
    def files(self) -> Mapping[str, str]:
        """The sources whose files are known, by the hash of each file that they were made of."""
        names = {source.data_id: source.source for source in self.plan.data.sources}
        return {sha256: names[data_id] for data_id, files in files_of_sources(self.plan) for sha256 in files}


def never_judged(request: TaskRequest, chain: Sequence[ForeseenStage]) -> str:
    """Why a task cannot judge a stage, whatever it learns; "" where nothing is known against it.

    Args:
        request: The task.
        chain: The stages up to the one that is judged.
    """
    stage, options = chain[-1].plan, request.options
    needs_template = (request.kind == "verifiable" and not options.chat_template) or (
        request.kind == "lm-eval" and options.chat
    )
    if needs_template and not _has_template(stage):
        remedy = "leave chat out" if request.kind == "lm-eval" else "name one: options: {chat_template: FILE}, or plain"
        return f"its checkpoint will hold no chat template, as no stage before it is taught to answer; {remedy}"
    if request.kind == "held-out" and not request.argument and stage.stage == "rl":
        return "what an rl stage holds out are prompts; name a tokenised dataset, held-out:PREFIX, or verifiable:FILE"
    if request.kind == "held-out" and request.argument:
        return _against_dataset(request, [one.plan for one in chain])
    if request.kind == "verifiable" and options.contaminated == "refuse" and options.contamination_items < 1:
        return _against_questions(Path(request.argument), chain)
    return ""


def _has_template(stage: StagePlan) -> bool:
    """Whether a stage's checkpoints will carry a chat template; also where that is not known yet."""
    if stage.sft is not None or stage.rl is not None:
        return True
    config = Path(stage.data.tokenizer) / "tokenizer_config.json"
    return not config.is_file() or json.loads(config.read_bytes()).get("chat_template") is not None


def _against_dataset(request: TaskRequest, chain: Sequence[StagePlan]) -> str:
    dataset = find_dataset(request.argument)
    if dataset is None:
        return ""
    expected = chain[-1].data.tokenizer_fingerprint
    if expected and dataset.tokenizer.fingerprint != expected:
        return (
            f"made by tokenizer {dataset.tokenizer.fingerprint[:12]}…, and the stage reads {expected[:12]}…; tokenize "
            "it with the stage's"
        )
    trained = {source.data_id: source.source for stage in chain for source in stage.data.sources}
    if chain[0].behind is not None:
        trained |= {source.data_id: source.source for source in chain[0].behind.sources}
    if dataset.data_id not in trained or request.options.contaminated == "mark":
        return ""
    return _trained_on(f"these very tokens, source {trained[dataset.data_id]}")


def _against_questions(file: Path, chain: Sequence[ForeseenStage]) -> str:
    if not file.is_file():
        return ""
    state = file.stat()
    sha256 = _hash(file, state.st_size, state.st_mtime_ns)
    for stage in chain:
        if sha256 in stage.files:
            return _trained_on(f"this very file, source {stage.files[sha256]} of {stage.plan.stage_id}")
    return ""


def _trained_on(what: str) -> str:
    return (
        f"the stage is trained on {what}: what it would measure is memory; take other items, or have the result "
        "marked, in the suite's file: options: {contaminated: mark}"
    )


@functools.lru_cache(maxsize=64)
def _hash(file: Path, size: int, time: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
