"""`megatron-ext export` and `import` as docs/how-to/export-and-import.md shows them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from megatron_ext.convert.giver import open_giver
from megatron_ext.convert.model_card import model_card
from megatron_ext.datasets.ledger import PADDING, LedgerRow
from megatron_ext.plan.stage_plan import StagePlan
from tests.support.toy_project import Run, ToyProject


def test_a_stage_goes_out_with_its_card_and_comes_back_as_a_stage(
    toy_run: Run, toy_project: ToyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs = tmp_path / "exported" / "toy", tmp_path / "runs"
    assert main(["export", str(toy_run.stage_folder), "--to", str(out), "--dtype", "bf16", "--verify"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"verify: random tokens, 700 tokens: logits up to \S+ differ by \S+ at most", printed)
    assert re.search(r"verify: largest difference \S+ of the largest logit, allowed 1.0e-05", printed)
    assert f"{out}: 267,464 numbers in bf16" in printed
    assert sorted(path.name for path in out.parent.iterdir()) == ["toy"]
    card = (out / "README.md").read_text()
    assert f"# toy, stage `{toy_run.stage_folder.name}`\n" in card
    assert f"| `{toy_run.stage_folder.name}` | pretrain.yaml | 5,120 | |" in card
    assert "| sums | general | 3,840 | 3,840 |" in card
    assert "| sums | not stated |" in card
    assert str(toy_project.root) not in card  # no folder of the machine

    assert main(["import", str(out), "--to", str(runs)]) == 0
    (stage,) = (runs / "stages").iterdir()
    printed = capsys.readouterr().out
    assert f"{stage}: 267,464 parameters in bf16" in printed
    assert f"    init_from: {stage.name}\n    model: {stage}/model.yaml\n" in printed
    assert json.loads((stage / "stage.json").read_text())["stage"] == "import"


def test_a_card_takes_terms_from_the_newest_plan_and_says_where_a_plan_is_too_old_to_have_them(
    toy_run: Run, tmp_path: Path
) -> None:
    checkpoint = toy_run.copied(tmp_path / "runs").stage_folder / "checkpoints" / "step_10"
    stage = checkpoint.parents[1] / "plan.json"
    plan = json.loads(stage.read_text())
    older = json.loads(stage.read_text())
    for source in older["data"]["sources"]:
        del source["licence"]
    giver = replace(open_giver(checkpoint), plan=StagePlan.model_validate(older))
    plan["data"]["sources"][0] |= {"licence": "PSF-2.0"}
    stage.write_text(json.dumps(plan))
    assert "| sums | PSF-2.0 |\n| words | not stated |" in model_card(giver, dtype="fp32")
    stage.write_text(json.dumps(older))
    assert "| sums | not recorded: the stage's plan is older than this field |" in model_card(giver, dtype="fp32")


def test_a_card_says_how_many_tokens_of_its_stages_were_padding(toy_run: Run, tmp_path: Path) -> None:
    checkpoint = toy_run.copied(tmp_path / "runs").stage_folder / "checkpoints" / "step_10"
    giver = open_giver(checkpoint)
    assert "padding, which" not in model_card(giver, dtype="fp32")
    rows = json.loads((checkpoint / "ledger.json").read_text())
    padding = LedgerRow(1, PADDING, "", PADDING, read=1_100, padding=1_100).to_json()
    (checkpoint / "ledger.json").write_text(json.dumps([*rows, padding]))
    text = "1,100 more positions of the stages' tokens held padding, which is of no source."
    assert text in model_card(giver, dtype="fp32")


def test_a_checkpoint_of_megatron_lm_needs_a_model_and_a_tokenizer(
    toy_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = tmp_path / "iter_0000010"
    stock.mkdir()
    for path in (toy_run.stage_folder / "checkpoints" / "step_10").iterdir():
        if path.suffix == ".distcp" or path.name in (".metadata", "metadata.json"):
            (stock / path.name).write_bytes(path.read_bytes())
    assert main(["export", str(stock), "--to", str(tmp_path / "out")]) == 2
    assert "a checkpoint of Megatron-LM says neither model nor tokenizer; give --model FILE" in capsys.readouterr().err
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    tokenizer = toy_run.stage_folder / "checkpoints" / "step_10" / "tokenizer"
    model = tmp_path / "model.yaml"
    model.write_text(
        Path(json.loads((toy_run.stage_folder / "plan.json").read_text())["recipe"]).with_name("model.yaml").read_text()
    )
    command = [
        "export",
        str(tmp_path),
        "--to",
        str(tmp_path / "out"),
        "--model",
        str(model),
        "--tokenizer",
        str(tokenizer),
    ]
    assert main(command) == 0
    assert "267,464 numbers in fp32" in capsys.readouterr().out
    assert "A checkpoint of Megatron-LM, which records no lineage" in (tmp_path / "out" / "README.md").read_text()
