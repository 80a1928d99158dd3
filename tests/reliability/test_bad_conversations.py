"""Whatever is wrong with fine-tuning's input is named and counted, and refused unless somebody says to skip it.

Two tables: conversations, which `data_tools chat` reads, and what a stage makes of datasets and of its parent.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_tools.__main__ import main as data_tools
from data_tools.chat_template_files import SHIPPED_TEMPLATE
from data_tools.manifest import read_manifest
from data_tools.tokenizer import train
from megatron_ext import run
from megatron_ext.__main__ import main as megatron_ext
from tests.support.pencil_project import PencilProject, record, write_tokenizer
from tests.support.sft_project import LONG, SHORT, make_sft_project, write_chat

SYSTEM, USER, ASSISTANT, TOOL = (
    {"role": role, "content": "the cat"} for role in ("system", "user", "assistant", "tool")
)
REFUSES_CODE = "{% if 'code' in messages[0].content %}{{ raise_exception('no code here') }}{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a template that refuses what speaks of code."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.jsonl").write_text(json.dumps({"text": "the cat sat " * 20}) + "\n")
    train([folder / "text.jsonl"], "text", 288, folder / "tok")
    (folder / "tok" / "chat_template.jinja").write_text(REFUSES_CODE + SHIPPED_TEMPLATE.read_text())
    return folder / "tok"


@dataclass(frozen=True)
class BadTalk:
    """A conversation that cannot be learned from.

    Attributes:
        turns: Its messages.
        reason: Under which it is counted.
        detail: What is said of it.
        options: Of `data_tools chat`.
    """

    turns: list[dict[str, Any]]
    reason: str
    detail: str
    options: str = ""


BAD_TALKS = {
    "no assistant": BadTalk([USER], "bad conversation", "its only turn is not the assistant's"),
    "no turns": BadTalk([], "empty", 'the list under "messages" says nothing'),
    "empty content": BadTalk([USER, ASSISTANT | {"content": ""}], "empty", "turn 2 is empty"),
    "content is null": BadTalk([USER | {"content": None}, ASSISTANT], "empty", "turn 1 is empty"),
    "assistant first": BadTalk(
        [ASSISTANT, USER],
        "roles out of order",
        "turn 1 is of assistant, at the beginning, where system or user may speak",
    ),
    "two users": BadTalk(
        [USER, USER, ASSISTANT], "roles out of order", "turn 2 is of user, after one of user, where assistant may speak"
    ),
    "two assistants": BadTalk(
        [USER, ASSISTANT, ASSISTANT],
        "roles out of order",
        "turn 3 is of assistant, after one of assistant, where system or tool or user may speak",
    ),
    "late system": BadTalk(
        [USER, SYSTEM, ASSISTANT],
        "roles out of order",
        "turn 2 is of system, after one of user, where assistant may speak",
    ),
    "tool unasked": BadTalk(
        [USER, TOOL, ASSISTANT], "roles out of order", "turn 2 is of tool, after one of user, where assistant may speak"
    ),
    "template fails": BadTalk(
        [USER | {"content": "code?"}, ASSISTANT], "template", "the chat template refuses it: no code here"
    ),
    "all masked": BadTalk(
        [USER, ASSISTANT | {"content": None, "tool_calls": [{"function": {"name": "cat"}}]}],
        "nothing trained",
        "no turn has anything of assistant",
        "--train-on assistant",
    ),
}


@pytest.mark.parametrize("name", BAD_TALKS)
def test_a_bad_conversation_ends_the_job_or_is_counted_and_listed(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    bad = BAD_TALKS[name]
    lines = [[USER, ASSISTANT], bad.turns, [SYSTEM, USER, ASSISTANT, TOOL, TOOL, ASSISTANT, USER]]
    raw, output = tmp_path / "in.jsonl", tmp_path / "c"
    raw.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in lines))
    command = shlex.split(f"chat --input {raw} --tokenizer {tokenizer} --output {output} {bad.options}")
    assert data_tools(command) == 3
    assert capsys.readouterr().err.startswith(f"error: {raw}:2: {bad.reason}: {bad.detail}")
    assert not list(tmp_path.glob("c.*"))
    assert data_tools([*command, "--on-error", "skip"]) == 0
    manifest = read_manifest(output)
    assert (manifest.documents, manifest.rejected_by_reason) == (2, {bad.reason: 1})
    (listed,) = map(json.loads, Path(f"{output}.rejects.jsonl").read_text().splitlines())
    assert listed == {"file": str(raw), "line": 2, "reason": bad.reason, "detail": bad.detail}
    assert data_tools([*command, "--on-error", "skip", "--max-bad", "0", "--overwrite"]) == 3
    assert "more than --max-bad 0 records are bad" in capsys.readouterr().err


@pytest.fixture
def project(tmp_path: Path) -> PencilProject:
    return make_sft_project(tmp_path)


def stage(project: PencilProject, verb: str, *overrides: str) -> int:
    """Runs a verb on the recipe of the project."""
    paths = ["--site", str(project.site), "--run-root", str(project.root / "runs")]
    options = [str(project.recipe), *paths, *(word for override in overrides for word in ("--set", override))]
    return run.main(options) if verb == "run" else megatron_ext([verb, *options])


def all_masked(project: PencilProject) -> None:
    write_chat(project, "c", [SHORT] * 8 + [LONG] * 3 + [(5, [])])


def overlong(project: PencilProject) -> None:
    write_chat(project, "c", [SHORT] * 11 + [(20, [(1, 20)])])


UNTRAINED = "sft.untrained: error, and 1 conversation or piece of source 'c' has no token to train on"
TOO_LONG = "sft.overlong: error, and 1 of 12 conversations drawn from"


@pytest.mark.parametrize("verb", ["plan", "prepare", "run"])
@pytest.mark.parametrize(("spoil", "said"), [(all_masked, UNTRAINED), (overlong, TOO_LONG)], ids=lambda value: "")
def test_conversations_that_a_stage_cannot_train_on_are_refused_by_every_verb(
    project: PencilProject, capsys: pytest.CaptureFixture[str], verb: str, spoil: Any, said: str
) -> None:
    spoil(project)
    assert stage(project, verb) == 3
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "permission", "counted", "said"),
    [
        (all_masked, "sft.untrained=skip", {"untrained": 1}, "1 conversation or piece has no token to train on"),
        (overlong, "sft.overlong=drop", {"dropped": 1}, "1 of 12 conversations is too long for a row and left out"),
        (overlong, "sft.overlong=truncate", {"truncated": 1}, "too long for a row and loses its end: 4 of 64 tokens"),
        (overlong, "sft.overlong=split", {"split": 1}, "too long for a row and cut into pieces that do not see"),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else "",
)
def test_what_the_recipe_permits_is_done_counted_and_said(
    project: PencilProject, spoil: Any, permission: str, counted: dict[str, int], said: str
) -> None:
    spoil(project)
    plan = project.plan(permission)
    assert plan.sft is not None
    found = plan.sft.sources[0].model_dump()
    kinds = ("untrained", "dropped", "truncated", "trimmed", "split")
    assert {kind: found[kind] for kind in kinds if found[kind]} == counted
    assert any(said in sentence for sentence in plan.roundings)


def another_tokenizer(project: PencilProject) -> None:
    """Of the same size, and the data is made with it; the parent is named by its id and read with the one before."""
    unfinished(project)
    file = project.root / "data" / "tokenizer" / "tokenizer.json"
    file.unlink()
    (file.parent / "tokenizer_config.json").unlink()
    file.parent.rmdir()
    write_tokenizer(file.parent)
    file.write_text(file.read_text().replace('"t5"', '"u5"'))
    for name, talks in {"c": [SHORT] * 12, "c.validation": [SHORT], "d": [(7, None)] * 4}.items():
        write_chat(project, name, talks)
    write_chat(project, "d.validation", [(7, None), (5, None)])


def unfinished(project: PencilProject) -> None:
    """A parent that has begun, named by its id."""
    project.recipe.rename(project.root / "sft.yaml")
    (project.root / "base.yaml").rename(project.recipe)
    recorded = record(project.plan(), project.root / "runs").stage_id
    (project.root / "sft.yaml").rename(project.recipe)
    project.edit("pretrain.yaml", "init_from: base.yaml", f"init_from: {recorded}")


def nothing(project: PencilProject) -> None:
    pass


BAD_PARENTS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...], list[str]]] = {
    "another tokenizer": (
        another_tokenizer,
        (),
        ("plan", "prepare", "run"),
        ["data.tokenizer: ", ", and the weights read with ", "Take the tokenizer of pretrain-"],
    ),
    "another pattern": (
        nothing,
        ("model.hybrid_layer_pattern=M-M*M*",),
        ("plan", "prepare", "run"),
        ["model.hybrid_layer_pattern: 'M-M*M*', and 'M-M*M-' in pretrain-", "which gives the weights; write the same"],
    ),
    "not trained": (nothing, (), ("run",), ["init_from: pretrain-", "is not trained in ", "Train it first: python -m"]),
    "not finished": (unfinished, (), ("run",), ["init_from: pretrain-", "is not finished in ", "Finish it first: "]),
    "not named": (
        nothing,
        ("init_from=unresolved",),
        ("run",),
        ["init_from: unresolved; it can be planned so, and not run: add --set init_from=STAGE"],
    ),
}


@pytest.mark.parametrize("name", BAD_PARENTS)
def test_a_parent_that_cannot_give_its_weights_is_refused(
    project: PencilProject, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    spoil, overrides, verbs, said = BAD_PARENTS[name]
    spoil(project)
    before = sorted((project.root / "runs").rglob("stages/*/*"))
    for verb in verbs:
        assert stage(project, verb, *overrides) == 2, verb
        error = capsys.readouterr().err
        assert [part for part in said if part not in error] == [], error
    assert sorted((project.root / "runs").rglob("stages/*/*")) == before, "a refused stage wrote something"
