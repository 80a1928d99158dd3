"""An rl stage handed off: weights, prompts, rewards and configuration lie ready, or a sentence says why not."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from transformers import AutoTokenizer

from megatron_ext.__main__ import main
from megatron_ext.datasets.prompts import PromptCursor, planned_prompts
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe
from tests.support.rl_project import add_rl
from tests.support.toy_project import ToyProject, make_toy_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    project = make_toy_project(tmp_path_factory.mktemp("handoff_run"))
    add_rl(project)
    assert project.run(project.root / "base").code == 0
    return project


def hand_off(project: ToyProject, to: Path, *words: str, run_root: str = "base") -> int:
    paths = ["--site", str(project.root / "site.yaml"), "--run-root", str(project.root / run_root)]
    return main(["rl-handoff", str(project.root / "rl.yaml"), "--to", str(to), *paths, *words])


@pytest.fixture(scope="module")
def plan(project: ToyProject) -> StagePlan:
    loaded = load_recipe(project.root / "rl.yaml", site=project.root / "site.yaml")
    return make_stage_plan(loaded, run_root=project.root / "base")


@pytest.fixture(scope="module")
def verl(project: ToyProject) -> Path:
    assert hand_off(project, project.root / "verl") == 0
    return project.root / "verl"


@pytest.fixture(scope="module")
def nemo_rl(project: ToyProject) -> Path:
    assert hand_off(project, project.root / "nemo", "--engine", "nemo-rl") == 0
    return project.root / "nemo"


def drawn_of(plan: StagePlan) -> list[Any]:
    return [one.row for one in PromptCursor(plan, planned_prompts(plan)).draw(plan.batch.total_samples)]


def test_verls_rows_are_the_prompts_in_the_order_of_our_draws(verl: Path, plan: StagePlan) -> None:
    rows = pyarrow.parquet.read_table(verl / "train.parquet").to_pylist()
    drawn = drawn_of(plan)
    assert [row["prompt"] for row in rows] == [one.record["prompt"] for one in drawn]
    assert [row["reward_model"]["ground_truth"] for row in rows] == [
        one.record["reward_model"]["ground_truth"] for one in drawn
    ]
    assert {row["data_source"] for row in rows} == {"sums"}
    held_out = pyarrow.parquet.read_table(verl / "validation.parquet").to_pylist()
    assert not {json.dumps(row["prompt"]) for row in held_out} & {json.dumps(row["prompt"]) for row in rows}
    assert (len(rows), len(held_out)) == (24, 8)


def test_the_handed_off_tokenizer_gives_our_tokens_of_every_prompt(verl: Path, plan: StagePlan) -> None:
    tokenizer = AutoTokenizer.from_pretrained(verl / "model")
    for row in drawn_of(plan):
        text = tokenizer.apply_chat_template(row.record["prompt"], tokenize=False, add_generation_prompt=True)
        assert tuple(tokenizer.encode(text, add_special_tokens=False)) == row.ids


def test_nemo_rls_rows_are_the_rendered_prompts_in_the_order_of_our_draws(nemo_rl: Path, plan: StagePlan) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nemo_rl / "model")
    rows = [json.loads(line) for line in (nemo_rl / "train.jsonl").read_text().splitlines()]
    ids = [tuple(tokenizer.encode(row["input"], add_special_tokens=False)) for row in rows]
    assert ids == [one.ids for one in drawn_of(plan)]
    assert len((nemo_rl / "validation.jsonl").read_text().splitlines()) == 8


def test_answers_end_at_the_same_ids(verl: Path, nemo_rl: Path, plan: StagePlan) -> None:
    stops = sorted(planned_prompts(plan).stop_ids)
    assert len(stops) > 1
    assert json.loads((verl / "model" / "generation_config.json").read_text())["eos_token_id"] == stops
    configuration = yaml.safe_load((nemo_rl / "nemo_rl.yaml").read_text())
    assert configuration["policy"]["generation"]["stop_token_ids"] == stops


def test_verls_reward_function_is_ours(verl: Path) -> None:
    configuration = yaml.safe_load((verl / "verl.yaml").read_text())["reward"]["custom_reward_function"]
    compute_score = runpy.run_path(configuration["path"])[configuration["name"]]
    row = pyarrow.parquet.read_table(verl / "train.parquet").to_pylist()[0]
    truth = row["reward_model"]["ground_truth"]
    for reply, accuracy in ((f"It is \\boxed{{{truth}}}.", 1.0), ("It is \\boxed{1000}.", 0.0), (truth, 0.0)):
        found = compute_score("sums", reply, truth, row["extra_info"], reward_router_address=None)
        assert found == {"score": accuracy, "acc": accuracy, "format": 0.0, "scored": 1.0}  # accuracy alone weighs


def test_the_page_traces_values_and_lists_what_is_lost(
    verl: Path, project: ToyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (verl / "HANDOFF.md").read_text()
    assert "| `actor_rollout_ref.rollout.n` | `2` | `rl.samples_per_prompt` |" in page
    assert "| `rl.mismatch_threshold` | 0.1: the mismatch is logged, and nothing stops above it |" in page
    assert str(verl) in page
    assert hand_off(project, tmp_path / "again") == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    cells = [line.split("|") for line in page.splitlines() if line.startswith("| `") and line.count("|") == 3]
    assert printed == [f"{key.strip(' `')}: {what.strip()}" for _, key, what, _ in cells]
    assert len(printed) > 9


def test_a_stage_whose_weights_are_not_trained_is_not_handed_off(
    project: ToyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hand_off(project, tmp_path / "to", run_root="nothing") == 2
    assert "is not trained in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_weights_that_nobody_has_named_are_asked_for(
    project: ToyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hand_off(project, tmp_path / "to", "--set", "init_from=unresolved") == 2
    assert "init_from: unresolved; it can be planned so, and not run: add --set init_from=" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_stage_of_another_kind_and_a_folder_that_is_there_are_refused(
    project: ToyProject, verl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--site", str(project.root / "site.yaml"), "--run-root", str(project.root / "base")]
    assert main(["rl-handoff", str(project.recipe), "--to", str(tmp_path / "to"), *paths]) == 2
    assert "stage: pretrain: rl-handoff hands off rl stages" in capsys.readouterr().err
    before = sorted(path.name for path in verl.iterdir())
    assert hand_off(project, verl) == 2
    assert "is there already" in capsys.readouterr().err
    assert sorted(path.name for path in verl.iterdir()) == before


def test_damaged_weights_leave_no_folder(project: ToyProject, tmp_path: Path) -> None:
    damaged = shutil.copytree(project.root / "base", tmp_path / "damaged")
    (shard,) = list(damaged.glob("stages/*/checkpoints/step_10/*.distcp"))[:1]
    shard.write_bytes(shard.read_bytes()[:-64])
    assert hand_off(project, tmp_path / "to", run_root=str(damaged)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]
