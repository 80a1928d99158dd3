"""A stage that begins with another one's weights has exactly these weights, and nothing else of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch import Tensor

from megatron_ext.__main__ import main
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.recipe.load import load_recipe
from megatron_ext.training.checkpoint import begin_with_weights
from megatron_ext.training.optimizer_state import count_updates
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.step import train_step
from tests.support.one_process import one_process
from tests.support.toy_project import Run, ToyProject

BASE = """\
extends: pretrain.yaml
data: {blend: [{source: sums.yaml, share: 1}]}
budget: {tokens: 2_560}
"""
CHILD = """\
extends: pretrain.yaml
init_from: base.yaml
data: {blend: [{source: words.yaml, share: 1}]}
budget: {tokens: 2_560}
schedule: {horizon_tokens: 5_120}
seed: 7
"""
SFT = """\
extends: pretrain.yaml
stage: sft
init_from: base.yaml
data:
  blend: [{source: words.yaml, share: 1}]     # text without turns trains on all its tokens
  document_isolation: full
budget: {tokens: 0, examples: 32}
training: {sequence_length: 512, global_batch_size: 8, micro_batch_size: 1, validation_tokens: 512}
schedule: {warmup_tokens: 0, warmup_ratio: 0.1}
"""
THIRD = """\
extends: child.yaml
continue: child.yaml
init_from: null
"""


@pytest.fixture(scope="module")
def project(toy_project: ToyProject) -> ToyProject:
    for name, text in {"base": BASE, "child": CHILD, "third": THIRD, "sft": SFT}.items():
        (toy_project.root / f"{name}.yaml").write_text(text)
    return toy_project


def run(project: ToyProject, name: str, run_root: Path, *overrides: str, processes: int | None = None) -> Run:
    return project.run(run_root, *overrides, processes=processes, recipe=project.root / f"{name}.yaml")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def checkpoint(request: pytest.FixtureRequest, project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by two ranks that share every layer."""
    keys = ("parallel.tensor_model_parallel_size=2", f"precision={request.param}", "training.max_steps=2")
    cut = run(project, "base", tmp_path_factory.mktemp("giver"), *keys, processes=2)
    assert cut.code == 0, cut.output
    return cut.stage_folder / "checkpoints" / "step_2"


def written_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint as they lie on disk, by key."""
    everything = dist_checkpointing.load_plain_tensors(str(checkpoint))
    return {
        key: value
        for key, value in everything.items()
        if isinstance(value, Tensor) and not key.startswith("optimizer.")
    }


def weights_of(parts: Parts) -> dict[str, Tensor]:
    """The weights of a whole model, by the key under which a checkpoint holds them."""
    sharded = parts.model.module.sharded_state_dict(metadata={"dp_cp_group": parts.groups.dp_cp})
    apply_factories(sharded)
    return {one.key: one.data.clone() for one in nested_values(sharded) if isinstance(one, ShardedTensor)}


@pytest.mark.parametrize("distributed", ["false", pytest.param("true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_the_givers_bit_for_bit_and_moments_are_zero(
    project: ToyProject, checkpoint: Path, precision: str, distributed: str
) -> None:
    overrides = [f"precision={precision}", f"parallel.use_distributed_optimizer={distributed}"]
    loaded = load_recipe(project.root / "child.yaml", overrides=overrides, site=project.root / "site.yaml")
    with one_process() as groups:
        parts = make_parts(make_stage_plan(loaded), groups)
        expected = {key: tensor.to(weights_of(parts)[key].dtype) for key, tensor in written_weights(checkpoint).items()}
        assert any(not torch.equal(mine, expected[key]) for key, mine in weights_of(parts).items())
        begin_with_weights(checkpoint, parts)
        assert weights_of(parts).keys() == expected.keys()
        assert [key for key, mine in weights_of(parts).items() if not torch.equal(mine, expected[key])] == []
        assert count_updates(parts.optimizer) == 0
        (inner,) = parts.optimizer.chained_optimizers
        states = inner.optimizer.state.values()
        assert states
        assert not any(state[moment].any() for state in states for moment in ("exp_avg", "exp_avg_sq"))
        # An update of rate 0 writes the main weights back into the model: they are the giver's too.
        train_step(parts, lr=0.0, step=1, may_skip=False)
        assert [key for key, mine in weights_of(parts).items() if not torch.equal(mine, expected[key])] == []


def facts_of(stage: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """stage.json, and state.json of the last checkpoint."""
    facts: dict[str, Any] = json.loads((stage.stage_folder / "stage.json").read_text())
    return facts, json.loads((stage.stage_folder / facts["checkpoint"] / "state.json").read_text())


def test_a_run_begins_everything_anew_and_its_ledger_has_what_the_giver_read(
    project: ToyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = run(project, "base", tmp_path, "parallel.tensor_model_parallel_size=2", processes=2)
    alone = run(project, "child", tmp_path, "init_from=null")
    child = run(project, "child", tmp_path)
    assert (base.code, alone.code, child.code) == (0, 0, 0), base.output + child.output
    weights = f"begins with the weights of {base.stage_folder}/checkpoints/step_5; optimizer, data and learning rate"
    assert weights in child.output
    assert [line["lr"] for line in child.metrics] == [line["lr"] for line in alone.metrics]
    assert child.losses[0] < alone.losses[0] - 0.1  # 5 steps on sums have taught it something of words
    facts, state = facts_of(child)
    assert (state["optimizer"]["updates"], state["state"]["step"]) == (5, 5)
    assert state["cursor"]["sources"] == facts_of(alone)[1]["cursor"]["sources"]
    assert facts["parent"] == base.stage_folder.name
    rows = [(row["phase"], row["source"], row["read"], row["first"]) for row in facts["ledger"]]
    assert rows == [(0, "sums", 2560, 2560), (1, "words", 2560, 2560)]
    assert json.loads((child.stage_folder / facts["checkpoint"] / "ledger.json").read_text()) == facts["ledger"]
    assert main(["ledger", str(child.stage_folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["before", "sums", "general", "2,560", "2,560"] in [line[:5] for line in lines]
    assert ["all", "general", "5,120", "5,120", "5,120"] in [line[:5] for line in lines]


def test_fine_tuning_begins_with_the_weights_of_pretraining(
    project: ToyProject, trained_base: Run, tmp_path: Path
) -> None:
    base = trained_base.copied(tmp_path / "runs")
    stage = run(project, "sft", base.run_root)
    assert stage.code == 0, stage.output
    assert f"begins with the weights of {base.stage_folder}/checkpoints/step_5" in stage.output
    assert stage.stage_folder.name.startswith("sft-")
    facts, state = facts_of(stage)
    assert state["optimizer"]["updates"] == len(stage.losses)
    rows = {(row["phase"], row["source"]): (row["samples"], row["read"]) for row in facts["ledger"]}
    assert rows[0, "sums"] == (40, 2560)
    assert rows[1, "words"][0] == 32
    assert stage.losses[0] < math.log(1024) - 0.2  # new weights would have that of a uniform guess


def test_a_cut_run_goes_on_bit_for_bit_and_without_the_giver(
    project: ToyProject, trained_base: Run, trained_child: Run, tmp_path: Path
) -> None:
    base = trained_base.copied(tmp_path / "cut")
    cut = run(project, "child", tmp_path / "cut", "training.max_steps=2")
    shutil.rmtree(base.stage_folder)
    rest = run(project, "child", tmp_path / "cut")
    assert (cut.code, rest.code) == (0, 0), rest.output
    assert "goes on at step 2 from" in rest.output
    assert (rest.losses, facts_of(rest)) == (trained_child.losses, facts_of(trained_child))


def test_a_stage_may_continue_one_that_began_with_weights(
    project: ToyProject, trained_child: Run, tmp_path: Path
) -> None:
    third = run(project, "third", trained_child.copied(tmp_path / "runs").run_root)
    assert third.code == 0, third.output
    facts, state = facts_of(third)
    assert (state["optimizer"]["updates"], len(third.losses)) == (10, 5)
    assert [(row["phase"], row["source"], row["read"]) for row in facts["ledger"]] == [
        (0, "sums", 2560),
        (0, "words", 2560),
        (1, "words", 2560),
    ]


def test_a_source_that_is_begun_anew_is_not_said_to_be_new(
    project: ToyProject, trained_base: Run, tmp_path: Path
) -> None:
    run_root = trained_base.copied(tmp_path / "runs").run_root
    again = run(project, "child", run_root, "data.blend=[{source: sums.yaml, share: 1, max_epochs: 2}]")
    assert again.code == 0, again.output
    before, now = facts_of(again)[0]["ledger"]
    assert (before["read"], before["first"], before["distinct"]) == (2560, 2560, None)
    assert (now["read"], now["first"], now["repeated"], now["documents_first"]) == (2560, None, None, None)


def test_a_giver_that_is_not_trained_finished_or_whole_is_refused_before_anything_is_written(
    project: ToyProject, tmp_path: Path
) -> None:
    refused = run(project, "child", tmp_path)
    assert refused.code == 2
    assert "init_from: pretrain-" in refused.output
    assert f"is not trained in {tmp_path}: there is no" in refused.output
    assert not refused.stage_folder.exists()
    base = run(project, "base", tmp_path, "training.max_steps=1")
    refused = run(project, "child", tmp_path)
    assert (refused.code, "is not finished in" in refused.output) == (2, True)
    assert run(project, "base", tmp_path).code == 0
    (base.stage_folder / "checkpoints" / "step_5" / "state.json").write_text("{}")
    refused = run(project, "child", tmp_path)
    assert (refused.code, "step_5: this checkpoint is damaged" in refused.output) == (3, True)
    facts = json.loads((base.stage_folder / "stage.json").read_text())
    facts["meaning"]["model"]["hidden_size"] = 32
    (base.stage_folder / "stage.json").write_text(json.dumps(facts))
    refused = run(project, "child", tmp_path)
    assert (refused.code, "stage.json: stage_id and meaning: of pretrain-" in refused.output) == (3, True)


def test_a_stage_that_awaits_its_weights_runs_once_they_are_named(
    project: ToyProject, trained_base: Run, tmp_path: Path
) -> None:
    base = trained_base.copied(tmp_path / "runs")
    refused = run(project, "child", base.run_root, "init_from=unresolved")
    assert refused.code == 2
    assert "init_from: unresolved; it can be planned so, and not run: add --set init_from=STAGE" in refused.output
    dry = project.run(base.run_root, "init_from=unresolved", flags=("--dry-run",), recipe=project.root / "child.yaml")
    assert (dry.code, "pretrain-provisional-" in dry.output) == (0, True)
    named = run(project, "child", base.run_root, f"init_from={base.stage_folder.name}", "training.max_steps=1")
    loaded = load_recipe(project.root / "child.yaml", site=project.root / "site.yaml")
    assert (named.code, named.stage_folder.name) == (0, make_stage_plan(loaded).stage_id)
