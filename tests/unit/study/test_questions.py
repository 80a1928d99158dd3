"""Suites that can never judge a stage are refused while the study is planned; what is not there is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from megatron_ext.evaluate.foreseen import ForeseenStage, never_judged
from megatron_ext.evaluate.options import Options
from megatron_ext.evaluate.tasks import read_request
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.questions import missing_questions
from tests.support.pencil_project import PencilProject, refused


def ask(study: PencilProject, task: str, *, kind: str = "pretrain", options: str = "{}") -> None:
    """Has one task judge one kind of stage."""
    Path("suite.yaml").write_text(f"suite: pencils\noptions: {options}\ntasks:\n  - {{task: '{task}'}}\n")
    study.edit("study.yaml", "evaluate: {sft:", f"evaluate: {{{kind}:")


def refusal() -> str:
    return refused(lambda: make_study_plan("study.yaml"))


def test_questions_for_a_stage_without_a_chat_template_are_refused(study: PencilProject) -> None:
    ask(study, "verifiable:q.jsonl")
    assert refusal() == (
        "study.yaml:10: evaluate.pretrain[0]: suite.yaml: verifiable:q.jsonl: pretrain of arm plain: its checkpoint "
        "will hold no chat template, as no stage before it is taught to answer; name one: options: {chat_template: "
        "FILE}, or plain"
    )


@pytest.mark.parametrize(
    ("task", "kind", "options"),
    [
        ("verifiable:q.jsonl", "pretrain", "{chat_template: plain}"),
        ("verifiable:q.jsonl", "sft", "{}"),
        ("lm-eval:digits", "pretrain", "{}"),
        ("held-out", "pretrain", "{}"),
        ("held-out:data/a.validation", "pretrain", "{}"),
        ("held-out:data/a", "pretrain", "{contaminated: mark}"),
        ("held-out:data/no", "pretrain", "{}"),
    ],
)
def test_a_suite_that_may_judge_is_planned(study: PencilProject, task: str, kind: str, options: str) -> None:
    ask(study, task, kind=kind, options=options)
    assert len(make_study_plan("study.yaml").evaluations) == 2


def test_a_tokenizer_that_brings_a_chat_template_gives_it_to_every_stage(study: PencilProject) -> None:
    ask(study, "verifiable:q.jsonl")
    file = Path("data/tokenizer/tokenizer_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": "{{ messages[0].content }}"}))
    assert len(make_study_plan("study.yaml").evaluations) == 2


def test_chat_for_a_stage_without_a_template_is_refused(study: PencilProject) -> None:
    ask(study, "lm-eval:digits", options="{chat: true}")
    assert refusal().endswith("as no stage before it is taught to answer; leave chat out")


@pytest.mark.parametrize("kind", ["pretrain", "sft"])  # sft begins from a stage that has read it
def test_a_dataset_that_is_trained_on_is_refused(study: PencilProject, kind: str) -> None:
    ask(study, "held-out:data/a", kind=kind)
    assert refusal().endswith(
        f"{kind} of arm {'plain' if kind == 'pretrain' else 'plain-chat'}: the stage is trained on these very tokens, "
        "source a: what it would measure is memory; take other items, or have the result marked, in the suite's "
        "file: options: {contaminated: mark}"
    )


def test_a_dataset_of_another_tokenizer_is_refused(study: PencilProject) -> None:
    plan = make_stage_plan(load_recipe("base.yaml"))
    other = plan.model_copy(update={"data": plan.data.model_copy(update={"tokenizer_fingerprint": "f" * 64})})
    request = read_request("held-out:data/a.validation", Options())
    assert never_judged(request, [ForeseenStage(plan)]) == ""
    assert "and the stage reads ffffffffffff…" in never_judged(request, [ForeseenStage(other)])


def test_held_out_sets_of_an_rl_stage_are_prompts(study: PencilProject) -> None:
    plan = make_stage_plan(load_recipe("base.yaml")).model_copy(update={"stage": "rl"})
    said = never_judged(read_request("held-out", Options()), [ForeseenStage(plan)])
    assert said.startswith("what an rl stage holds out are prompts; name a tokenised dataset")


def test_what_is_not_there_is_said_once_for_each_reason(study: PencilProject) -> None:
    Path("here.jsonl").write_text("{}\n")
    tasks = ["verifiable:q.jsonl", "verifiable:r.jsonl", "verifiable:here.jsonl", "held-out:data/a", "held-out:data/no"]
    text = "suite: one\ntasks:\n" + "".join(f"  - {{task: '{task}'}}\n" for task in tasks)
    Path("suite.yaml").write_text(text)
    assert missing_questions(["suite.yaml", "suite.yaml"]) == [
        "suite.yaml: verifiable:q.jsonl, verifiable:r.jsonl: no such file of questions, and no folder of an rl stage",
        "suite.yaml: held-out:data/no: no such dataset",
    ]
    Path("suite.yaml").write_text("suite: one\noptions: {chat_template: my.jinja}\n" + text.partition("\n")[2])
    assert "suite.yaml: verifiable:here.jsonl: chat_template: my.jinja: no such file" in missing_questions(
        ["suite.yaml"]
    )


def test_the_plan_says_what_a_run_would_be_refused_for(
    study: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(study, "held-out:data/no")
    assert main(["study", "plan", "study.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a run is refused until this is there: suite.yaml: held-out:data/no: no such dataset" in said
