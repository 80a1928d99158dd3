"""An sft stage from recipe to stage.json: resumed bit for bit, equal on two ranks, and telling what it has read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from data_tools.chat_template_files import SHIPPED_TEMPLATE
from megatron_ext.__main__ import main
from tests.support.toy_chat import add_chat
from tests.support.toy_project import Run, ToyProject, environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(toy_run: Run) -> Path:
    """A run root with the pretrained stage."""
    return toy_run.run_root


def run_of(project: ToyProject, base: Path, run_root: Path, *keys: str, processes: int | None = None) -> Run:
    shutil.copytree(base, run_root, dirs_exist_ok=True)
    run = project.run(run_root, *keys, processes=processes, recipe=add_chat(project))
    assert run.code == 0, run.output
    return run


@pytest.fixture(scope="module")
def whole(toy_project: ToyProject, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(toy_project, base, tmp_path_factory.mktemp("whole"))


def test_a_stage_proves_isolation_says_where_it_begins_and_learns(whole: Run) -> None:
    assert "isolation holds: 4 documents in 96 tokens" in whole.output
    before = {name: float(loss) for name, loss in re.findall(r"(\w+) (\d\.\d+)", _line(whole, "before the first step"))}
    after = whole.metrics[-1]["validation"]
    assert before.keys() == after.keys() == {"talks", "words"}
    assert after["talks"] < before["talks"] - 0.5


WITHOUT_BOUNDARIES = """\
import sys
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron_ext.run import main

made = PackedSeqParams.__post_init__

def without_boundaries(packed):
    made(packed)
    packed.seq_idx = torch.zeros_like(packed.seq_idx)

PackedSeqParams.__post_init__ = without_boundaries
sys.exit(main())
"""


def test_a_stage_whose_states_run_across_conversations_does_not_begin(
    toy_project: ToyProject, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    python, _, _, *arguments = toy_project.command(tmp_path, recipe=add_chat(toy_project))
    command = [python, "-c", WITHOUT_BOUNDARIES, *arguments]
    run = subprocess.run(
        command, cwd=toy_project.root, env=environment(), capture_output=True, text=True, timeout=180, check=False
    )
    assert run.returncode == 4, run.stderr
    said = run.stdout + run.stderr
    assert "document isolation full: the layers of this model do not keep it." in said
    assert "before the first step" not in said
    (folder,) = (tmp_path / "stages").glob("sft-*")
    assert not list((folder / "checkpoints").glob("step_*"))


def _line(run: Run, start: str) -> str:
    return next(line.split(":", 1)[1] for line in run.output.splitlines() if line.startswith(start))


def test_a_stopped_stage_goes_on_bit_for_bit(toy_project: ToyProject, base: Path, whole: Run, tmp_path: Path) -> None:
    run_of(toy_project, base, tmp_path, "training.max_steps=4")
    resumed = run_of(toy_project, base, tmp_path)
    assert "goes on at step 4" in resumed.output
    assert "before the first step" not in resumed.output
    assert resumed.losses == whole.losses
    assert _facts(resumed) == _facts(whole)


def test_two_ranks_train_the_same(toy_project: ToyProject, base: Path, whole: Run, tmp_path: Path) -> None:
    two = run_of(toy_project, base, tmp_path, processes=2)
    assert two.losses == pytest.approx(whole.losses, rel=1e-5)
    assert _facts(two)["ledger"] == _facts(whole)["ledger"]


def _facts(run: Run) -> dict[str, object]:
    facts: dict[str, object] = json.loads((run.stage_folder / "stage.json").read_text())
    return facts


def test_the_chat_template_goes_with_stage_and_checkpoints(whole: Run) -> None:
    facts = _facts(whole)
    template = SHIPPED_TEMPLATE.read_text()
    assert facts["chat_template"] == template
    kept = whole.stage_folder / str(facts["checkpoint"]) / "tokenizer" / "chat_template.jinja"
    assert kept.read_text() == template


def test_the_ledger_counts_all_that_was_planned(whole: Run) -> None:
    ledger = [row for row in _facts(whole)["ledger"] if row["phase"]]  # type: ignore[attr-defined]
    rows = {row["source"]: row for row in ledger}
    plan = json.loads((whole.stage_folder / "plan.json").read_text())
    assert (rows["talks"]["samples"], rows["words"]["samples"]) == (30, 10)
    assert sum(row["read"] for row in rows.values()) == plan["batch"]["total_tokens"]
    trained = sum(row["read"] - row["padding"] - row["masked"] for row in rows.values())
    assert trained == plan["sft"]["trained_tokens"] == whole.metrics[-1]["trained_tokens"]


def test_a_question_is_asked_in_the_chat_template(whole: Run, capsys: pytest.CaptureFixture[str]) -> None:
    question = ["--prompt", "What is 3 plus 0?", "--max-new-tokens", "12"]
    assert main(["generate", str(whole.stage_folder), "--chat", *question]) == 0
    asked = capsys.readouterr().out
    assert asked.startswith("What is 3 plus 0?\n\n")
    assert main(["generate", str(whole.stage_folder), *question]) == 0
    assert capsys.readouterr().out.split("?", 1)[1].strip() != asked.split("?", 1)[1].strip()


def test_a_step_is_traced_to_its_conversations(
    toy_project: ToyProject, whole: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy_project.root)
    assert main(["trace", str(whole.stage_folder), "--step", "2", "--text"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"row 0  row:4\n", said)
    number = re.search(r"talks document (\d+), tokens 0 to \d+  .*talks\.jsonl row (\d+)\n +'(.*)'", said)
    assert number is not None
    assert int(number[2]) == int(number[1]) + 1
    asked = json.loads((toy_project.root / "talks.jsonl").read_text().splitlines()[int(number[1])])
    assert asked["messages"][0]["content"] in number[3]
