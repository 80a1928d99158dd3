"""A stage that begins with another one's weights takes nothing else, and must be the same model with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.tokenizer import describe, fingerprint
from megatron_ext.__main__ import main
from megatron_ext.plan.lineage import chain_behind
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.render import print_plan
from megatron_ext.plan.stage_plan import SEMANTICS_VERSION, StagePlan
from megatron_ext.plan.validate import validate_file
from megatron_ext.recipe.load import load_recipe
from tests.support.pencil_project import PencilProject, record, refused, write_tokenizer

CHILD = """\
extends: pretrain.yaml
init_from: pretrain.yaml
data:
  blend: [{source: c.yaml, share: 1}]
"""


@pytest.fixture
def project(project: PencilProject) -> PencilProject:
    """A stage that reads sources a and b, and one that begins with its weights and reads c."""
    project.write_source("c", tokens=1_000)
    Path("child.yaml").write_text(CHILD)
    return project


def plan(name: str, *overrides: str, may_be_provisional: bool = False) -> StagePlan:
    return make_stage_plan(load_recipe(f"{name}.yaml", overrides=overrides), may_be_provisional=may_be_provisional)


def refusal(name: str, *overrides: str) -> str:
    return refused(lambda: plan(name, *overrides))


def test_everything_but_the_weights_begins_anew(project: PencilProject) -> None:
    parent, child = plan("pretrain"), plan("child")
    assert child.parent is None
    assert child.init_from is not None
    assert [(stage.stage_id, stage.gives) for stage in child.init_from.chain] == [(parent.stage_id, "weights")]
    assert (child.batch.tokens_before, child.batch.requested_tokens_before) == (0, 0)
    assert child.schedule == parent.schedule  # the 10 steps of its own budget, not steps 11 to 20 of a chain
    assert [source.tokens_before for source in child.data.sources] == [0]


def test_the_giver_is_part_of_the_meaning_by_its_content(project: PencilProject) -> None:
    child, parent = plan("child"), plan("pretrain")
    assert child.meaning["init_from"] == parent.stage_id
    without = plan("child", "init_from=null")
    assert "init_from" not in without.meaning
    assert without.stage_id != child.stage_id
    record(parent, Path("runs"))
    assert plan("child", f"init_from={parent.stage_id}").stage_id == child.stage_id
    project.edit("pretrain.yaml", "lr: 3e-3", "lr: 2e-3")
    assert plan("child", "optimizer.lr=3e-3").stage_id != child.stage_id


@pytest.mark.parametrize(
    "override",
    [
        "training={sequence_length: 32, global_batch_size: 2}",
        "precision=bf16",
        "seed=7",
        "optimizer.lr=1e-3",
        "schedule.warmup_tokens=64",
        "budget.tokens=960",
        "model.init_method_std=0.01",
        "model.hybrid_layer_pattern=M-M|*M-",
    ],
)
def test_what_is_no_matter_of_the_weights_may_differ(project: PencilProject, override: str) -> None:
    overrides = [override] + (["parallel.pipeline_model_parallel_size=2"] if "|" in override else [])
    assert plan("child", *overrides).init_from is not None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.hybrid_layer_pattern=M-M*M*", "model.hybrid_layer_pattern: 'M-M*M*', and 'M-M*M-' in pretrain-"),
        ("model.hidden_size=32", "model.hidden_size: 32, and 64 in pretrain-"),
        ("model.vocab_size=2000", "model.vocab_size: padded_vocab_size 2,048, and 1,024 in pretrain-"),
        ("model.layernorm_epsilon=1e-6", "model.layernorm_epsilon: 1e-06, and 1e-05 in pretrain-"),
    ],
)
def test_weights_of_another_model_are_refused_with_both_values(
    project: PencilProject, override: str, said: str
) -> None:
    message = refusal("child", override)
    assert f"--set {override}: {said}" in message
    assert message.splitlines()[0].endswith("which gives the weights; write the same")


def retokenised(project: PencilProject, *, special: dict[str, int], eod: str = "<|endoftext|>") -> None:
    """Another tokenizer in another folder, source c made with it, and a recipe that reads both."""
    write_tokenizer(Path("data/other"))
    fields = json.loads(Path("data/other/tokenizer.json").read_text())
    fields["model"]["merges"] = []  # another file, with other ids or without
    fields["added_tokens"] = [{"content": token, "id": i, "special": True} for token, i in special.items()]
    Path("data/other/tokenizer.json").write_text(json.dumps(fields))
    Path("data/other/tokenizer_config.json").write_text(json.dumps({"eos_token": eod}))
    for name in ("c", "c.validation"):
        file = Path(f"data/{name}.manifest.json")
        manifest = json.loads(file.read_text())
        manifest["tokenizer"]["fingerprint"] = fingerprint("data/other")
        manifest["eod_id"] = describe("data/other").eod_id
        file.write_text(json.dumps(manifest))


def test_weights_that_read_with_another_tokenizer_are_refused_with_both_fingerprints(project: PencilProject) -> None:
    retokenised(project, special={})
    here, there = fingerprint("data/other")[:12], fingerprint("data/tokenizer")[:12]
    assert refusal("child", "data.tokenizer=other").splitlines() == [
        f"--set data.tokenizer=other: data.tokenizer: data/other is {here}…, and the weights read with data/tokenizer, "
        f"{there}…",
        f"  Take the tokenizer of {plan('pretrain').stage_id}, or weights that were trained with this one.",
    ]


def test_special_tokens_that_the_weights_do_not_know_are_named(project: PencilProject) -> None:
    fields = json.loads(Path("data/tokenizer/tokenizer.json").read_text())
    fields["added_tokens"] = [{"content": "<|im_start|>", "id": 2, "special": True}]
    Path("data/tokenizer/tokenizer.json").write_text(json.dumps(fields))
    for name in "ab":
        project.write_source(name, tokens=1_000)
    retokenised(project, special={"<|tool|>": 5, "<|im_start|>": 3}, eod="t7")
    assert refusal("child", "data.tokenizer=other").splitlines()[1:-1] == [
        "  special token '<|im_start|>': id 3 here, 2 there",
        "  special token '<|tool|>': id 5 here, none there",
        "  end of a document: id 7 here, 0 there",
    ]


def test_a_stage_may_await_its_weights_and_be_planned_but_not_run(project: PencilProject) -> None:
    given, open_ = plan("child"), plan("child", "init_from=unresolved", may_be_provisional=True)
    assert open_.stage_id.startswith("pretrain-provisional-")
    assert open_.meaning["init_from"] == "unresolved"
    assert open_.meaning | {"init_from": given.meaning["init_from"]} == given.meaning
    assert refusal("child", "init_from=unresolved") == (
        "--set init_from=unresolved: init_from: unresolved; it can be planned so, and not run: add "
        "--set init_from=STAGE, the recipe or the id of the stage whose weights it begins with"
    )
    project.edit("child.yaml", "init_from: pretrain.yaml", "init_from: unresolved")
    assert validate_file(Path("child.yaml")).endswith(f"{open_.stage_id} (parent unresolved)")
    assert plan("child", "init_from=pretrain.yaml").stage_id == given.stage_id


def test_a_stage_continues_or_begins_with_weights_and_not_both(project: PencilProject) -> None:
    assert refusal("child", "continue=pretrain.yaml") == (
        "--set continue=pretrain.yaml: init_from: pretrain.yaml, and continue is pretrain.yaml: the one begins anew "
        "with weights, the other goes on with everything; set one of them to null"
    )


def test_a_giver_that_is_nowhere_or_itself_is_refused(project: PencilProject) -> None:
    assert refusal("child", "init_from=pretrain-0").startswith(
        "--set init_from=pretrain-0: init_from: pretrain-0: no such stage in runs/stages; there are: none."
    )
    assert "write pretrain-0, with --run-root where it lies elsewhere" in refusal(
        "child", "init_from=runs/stages/pretrain-0"
    )
    assert "init_from: none.yaml: no such file" in refusal("child", "init_from=none.yaml")
    assert "init_from: a circle: child.yaml -> child.yaml" in refusal("child", "init_from=child.yaml")


def test_a_source_that_is_begun_anew_needs_permission_for_the_passes_of_all(project: PencilProject) -> None:
    """The parent reads 480 of 1,000 tokens of a and 160 of 400 of b; this stage as many again."""
    blend = "data.blend=[{source: a.yaml, share: 0.75}, {source: b.yaml, share: 0.25, max_epochs: %d}]"
    message = refusal("child", blend % 1)
    assert "init_from: source 'a': 0.48 passes of it were read before the weights were taken" in message
    assert "with this stage 0.8 are read, and max_epochs 1 forbids to read again; raise it to 2" in message
    message = refusal("child", blend % 2)
    assert "source 'a'" in message
    assert "source 'b'" not in message
    assert plan("child", blend % 2, "data.blend[0].max_epochs=2").data.sources[0].tokens_before == 0
    twice = ("budget.tokens=1920", "data.blend[0].max_epochs=2", "data.blend[1].max_epochs=1.5")
    assert "with this stage 1.6 are read, and max_epochs 1.5 forbids" in refusal("child", blend % 2, *twice)


def test_the_table_shows_the_passes_that_the_cap_is_checked_on(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parent reads 0.48 passes of a; this stage 0.32 of its own."""
    blend = "data.blend=[{source: a.yaml, share: 1, max_epochs: 2}]"
    short = ("budget.tokens=320", "schedule={warmup_tokens: 64, decay_tokens: 64}")
    print_plan(plan("child", blend, *short), run_root=Path("runs"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "source share samples tokens of its documents epochs in chain at most dataset" in lines
    assert "a 100 % 20 320 1,000 100 0.32 0.8 2 data/a" in lines


def test_what_was_read_before_the_weights_counts_for_stages_that_continue_theirs(project: PencilProject) -> None:
    Path("third.yaml").write_text(
        "extends: pretrain.yaml\ncontinue: child.yaml\ndata:\n  blend: [{source: a.yaml, share: 1, max_epochs: 1}]\n"
    )
    horizon = "warmup_tokens: 128, horizon_tokens: 1_280,"
    project.edit("pretrain.yaml", "warmup_tokens: 128,", horizon)
    assert "third.yaml:2: continue: source 'a': 0.48 passes of it were read before" in refusal("third")
    third = plan("third", "data.blend[0].max_epochs=2")
    assert third.parent is not None
    assert [(stage.recipe, stage.gives) for stage in third.parent.chain] == [
        ("pretrain.yaml", "weights"),
        ("child.yaml", "everything"),
    ]
    assert (third.batch.tokens_before, third.data.sources[0].tokens_before) == (640, 0)


def test_weights_of_other_numerics_are_taken_and_said(project: PencilProject) -> None:
    parent = plan("pretrain")
    record(parent.model_copy(update={"meaning": parent.meaning | {"semantics_version": 0}}), Path("runs"))
    child = plan("child", f"init_from={parent.stage_id}")
    assert child.roundings == (
        f"init_from: {parent.stage_id} was trained with semantics_version 0 of the numerics, and this code has "
        f"{SEMANTICS_VERSION}: its weights are taken as they are.",
    )


def test_plan_show_and_diff_name_the_giver(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    parent, child = plan("pretrain"), plan("child")
    assert main(["plan", "child.yaml"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = ["init_from", parent.stage_id, "pretrain.yaml:", "10", "steps,", "640", "tokens;", "its", "weights", "only"]
    assert said in lines
    assert not any(line[:1] == ["chain"] for line in lines)
    assert main(["plan", "child.yaml", "--set", "init_from=unresolved"]) == 0
    assert "unresolved: planned without it; run needs --set init_from=STAGE" in capsys.readouterr().out
    assert main(["show", "child.yaml", "--explain", "init_from"]) == 0
    assert "  hashed   yes, by the content behind the path" in capsys.readouterr().out
    assert main(["diff", "pretrain.yaml", "child.yaml"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"different stages: {parent.stage_id} and {child.stage_id} (init_from {parent.stage_id})"
    )


def test_a_longer_chain_gives_all_it_has_read(project: PencilProject) -> None:
    behind = chain_behind(plan("pretrain"), gives="weights")
    read = {source.source: (source.tokens_read, source.passes_before_anew) for source in behind.sources}
    assert read == {"a": (0, 0.48), "b": (0, 0.4)}


def test_what_a_chain_read_is_given_on_though_its_last_stage_did_not_read_it(project: PencilProject) -> None:
    project.edit("pretrain.yaml", "warmup_tokens: 128,", "warmup_tokens: 128, horizon_tokens: 1_280,")
    Path("second.yaml").write_text(CHILD.replace("init_from", "continue"))
    behind = chain_behind(plan("second"), gives="weights")
    assert {source.source: source.passes_before_anew for source in behind.sources} == {"a": 0.48, "b": 0.4, "c": 0.64}


def test_a_held_out_set_that_the_stages_behind_the_weights_trained_on_is_refused(project: PencilProject) -> None:
    """Read by the giver, and by the one whose weights that took, which reads the source no more."""
    project.write_source("d", tokens=500)
    Path("grandchild.yaml").write_text(
        CHILD.replace("init_from: pretrain", "init_from: child").replace("c.yaml", "d.yaml")
    )
    for name, source in (("child", "c"), ("grandchild", "d")):
        project.edit(f"{source}.yaml", f"validation_prefix: {source}.validation", "validation_prefix: a")
        assert refused(lambda name=name: plan(name), DataError) == (
            f"{source}.yaml:3: validation_prefix: holds the same tokens as source 'a', which the stages before have "
            "trained on; tokenize documents into it that the chain has not read"
        )
        project.edit(f"{source}.yaml", "validation_prefix: a", f"validation_prefix: {source}.validation")


def notes(name: str, capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    print_plan(plan(name, *overrides), run_root=Path("runs"))
    return [line.removeprefix("note  ") for line in capsys.readouterr().out.splitlines() if line.startswith("note")]


def test_a_plan_says_that_the_giver_is_not_finished(project: PencilProject, capsys: pytest.CaptureFixture[str]) -> None:
    giver = plan("pretrain").stage_id
    said = f"init_from: {giver} (pretrain.yaml) {{}} in runs; a run takes it when it is finished."
    assert notes("child", capsys) == [said.format("is not trained")]
    record(plan("pretrain"), Path("runs"))
    assert notes("child", capsys) == [said.format("is begun and not finished")]
    (Path("runs/stages") / giver / "stage.json").write_text("{}")
    assert notes("child", capsys) == []
    assert notes("pretrain", capsys) == []


def test_a_plan_says_what_shared_rows_need_where_it_is_left_open(
    project: PencilProject, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("parallel.context_parallel_size=2", "training.sequence_length=32")
    said = notes("pretrain", capsys, *keys)[-1]
    assert said.startswith("parallel.context_parallel_size 2: only backend te can, and auto takes it where")
    assert said not in notes("pretrain", capsys, *keys, "training.backend=te")
