"""A stage that continues another one goes on as if it were the same run: weights, optimizer, data, learning rate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.toy_project import Run, ToyProject

FIRST = "[{source: sums.yaml, share: 0.75}, {source: words.yaml, share: 0.25}]"
SECOND = "[{source: sums.yaml, share: 0.25}, {source: words.yaml, share: 0.75}]"
WHOLE = f"""\
extends: pretrain.yaml
data:
  blend: null
  phases:
    - {{tokens: 2_560, blend: {FIRST}}}
    - {{tokens: 2_560, blend: {SECOND}}}
schedule: {{horizon_tokens: 5_120}}
"""
BASE = f"""\
extends: pretrain.yaml
data: {{blend: {FIRST}}}
budget: {{tokens: 2_560}}
schedule: {{horizon_tokens: 5_120}}
"""
CHILD = f"""\
extends: base.yaml
continue: base.yaml
data: {{blend: {SECOND}}}
"""
LAYOUTS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "one-process": (None, ()),
    "bf16": (None, ("precision=bf16",)),
    "dp2-distributed-optimizer": (2, ("parallel.use_distributed_optimizer=true",)),
}


@pytest.fixture(scope="module")
def project(toy_project: ToyProject) -> ToyProject:
    for name, text in {"whole": WHOLE, "base": BASE, "child": CHILD}.items():
        (toy_project.root / f"{name}.yaml").write_text(text)
    return toy_project


def run(project: ToyProject, name: str, run_root: Path, *overrides: str, processes: int | None = None) -> Run:
    return project.run(run_root, *overrides, processes=processes, recipe=project.root / f"{name}.yaml")


def last_state(stage: Run) -> dict[str, Any]:
    facts = json.loads((stage.stage_folder / "stage.json").read_text())
    found: dict[str, Any] = json.loads((stage.stage_folder / facts["checkpoint"] / "state.json").read_text())
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_base_and_its_continuation_are_one_stage_of_two_phases_bit_for_bit(
    project: ToyProject, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    processes, overrides = LAYOUTS[name]
    if "precision=bf16" in overrides:
        request.addfinalizer(lambda: (project.root / "base.yaml").write_text(BASE))
        (project.root / "base.yaml").write_text(f"{BASE}precision: bf16\n")  # the child's parent is planned by it
    whole = run(project, "whole", tmp_path / "whole", *overrides, processes=processes)
    base = run(project, "base", tmp_path / "chain", *overrides, processes=processes)
    child = run(project, "child", tmp_path / "chain", *overrides, processes=processes)
    assert (whole.code, base.code, child.code) == (0, 0, 0), whole.output + base.output + child.output
    assert len(base.losses) == len(child.losses) == 5
    for key in ("loss", "grad_norm", "lr", "validation"):
        assert [line[key] for line in [*base.metrics, *child.metrics]] == [line[key] for line in whole.metrics], key
    assert last_state(child)["cursor"]["sources"] == last_state(whole)["cursor"]["sources"]
    assert last_state(child)["optimizer"]["updates"] == 10
    ledger = json.loads((child.stage_folder / "stage.json").read_text())["ledger"]
    assert [(row["phase"], row["source"], row["read"]) for row in ledger] == [
        (0, "sums", 1920),
        (0, "words", 640),
        (1, "sums", 640),
        (1, "words", 1920),
    ]
    assert json.loads((child.stage_folder / "checkpoints" / "step_5" / "ledger.json").read_text()) == ledger
    whole_ledger = json.loads((whole.stage_folder / "stage.json").read_text())["ledger"]
    counted = ("read", "first", "repeated", "documents_first", "documents_repeated", "distinct", "place")
    assert [[row[key] for key in counted] for row in ledger] == [[row[key] for key in counted] for row in whole_ledger]
    assert f"goes on behind the parent stage from {tmp_path / 'chain'}/stages/{base.stage_folder.name}" in child.output


def test_a_continuation_may_read_longer_samples_and_go_on_from_its_own_checkpoint(
    project: ToyProject, trained_base: Run, trained_child: Run, tmp_path: Path
) -> None:
    trained_base.copied(tmp_path / "whole")
    longer = "training={sequence_length: 512, global_batch_size: 1, micro_batch_size: 1}"
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    whole = run(project, "child", tmp_path / "whole", longer)
    cut = run(project, "child", tmp_path / "cut", longer, "training.max_steps=2")
    rest = run(project, "child", tmp_path / "cut", longer)
    assert (whole.code, cut.code, rest.code) == (0, 0, 0), whole.output + rest.output
    assert rest.losses == whole.losses
    assert [line["lr"] for line in whole.metrics] == [line["lr"] for line in trained_child.metrics]
    assert "what is left of the window is laid end to end and cut anew" in whole.output
    ledger = json.loads((whole.stage_folder / "stage.json").read_text())["ledger"]
    assert (rest.stage_folder / "stage.json").read_bytes() == (whole.stage_folder / "stage.json").read_bytes()
    assert [(row["phase"], row["read"], row["repeated"]) for row in ledger] == [
        (0, 1920, 0),
        (0, 640, 0),
        (1, 512, 0),
        (1, 2048, 0),
    ]
    assert 2560 - sum(row["masked"] for row in ledger) == whole.metrics[-1]["trained_tokens"] < 2560


def test_a_cut_continuation_goes_on_from_its_own_checkpoint(
    project: ToyProject, trained_base: Run, trained_child: Run, tmp_path: Path
) -> None:
    trained_base.copied(tmp_path / "cut")
    cut = run(project, "child", tmp_path / "cut", "training.max_steps=2")
    rest = run(project, "child", tmp_path / "cut")
    assert (cut.code, rest.code) == (0, 0), rest.output
    assert (len(cut.losses), rest.losses) == (5, trained_child.losses)
    assert (rest.stage_folder / "stage.json").read_bytes() == (trained_child.stage_folder / "stage.json").read_bytes()


def test_a_continuation_may_run_in_another_layout_and_name_its_parent_by_id(
    project: ToyProject, trained_base: Run, trained_child: Run, tmp_path: Path
) -> None:
    base = trained_base.copied(tmp_path / "runs")
    by_id = run(project, "child", base.run_root, f"continue={base.stage_folder.name}", processes=2)
    assert by_id.code == 0, by_id.output
    assert by_id.stage_folder.name == trained_child.stage_folder.name
    assert "in another layout" in by_id.output


def test_a_parent_that_is_not_trained_or_not_finished_is_refused_before_training(
    project: ToyProject, tmp_path: Path
) -> None:
    refused = run(project, "child", tmp_path)
    assert refused.code == 2
    assert f"(base.yaml) is not trained in {tmp_path}: there is no" in refused.output.replace(f"{project.root}/", "")
    assert not refused.stage_folder.exists()
    run(project, "base", tmp_path, "training.max_steps=1")
    refused = run(project, "child", tmp_path)
    assert refused.code == 2
    assert "is not finished in" in refused.output
    assert "Finish it first: python -m megatron_ext.run" in refused.output


def test_a_finished_continuation_does_not_need_its_parents_checkpoint(
    project: ToyProject, trained_base: Run, trained_child: Run, tmp_path: Path
) -> None:
    chain = trained_child.copied(tmp_path / "runs")
    shutil.rmtree(chain.stage_folder.with_name(trained_base.stage_folder.name) / "checkpoints")
    again = run(project, "child", chain.run_root)
    assert (again.code, "Nothing to do" in again.output) == (0, True), again.output


def test_a_begun_continuation_goes_on_without_its_parents_files(
    project: ToyProject, trained_base: Run, tmp_path: Path
) -> None:
    base = trained_base.copied(tmp_path / "runs")
    cut = run(project, "child", base.run_root, "training.max_steps=2")
    shutil.rmtree(base.stage_folder)
    rest = run(project, "child", base.run_root)
    assert (cut.code, rest.code) == (0, 0), rest.output
    assert "goes on at step 2 from" in rest.output
    assert [line["step"] for line in rest.metrics] == [1, 2, 3, 4, 5]


def damage_its_facts(parent: Path) -> None:
    (parent / "stage.json").write_text("{}")


def damage_its_checkpoint(parent: Path) -> None:
    (parent / "checkpoints" / "step_5" / "state.json").write_text("{}")


def lose_its_checkpoint(parent: Path) -> None:
    shutil.rmtree(parent / "checkpoints" / "step_5")


def follow(remedy: str, project: ToyProject, run_root: Path) -> list[str]:
    """Does what each indented line of a message says; returns the names of its commands."""
    names = []
    for line in remedy.splitlines():
        words = line.split()
        if not line.startswith("    ") and "-m megatron_ext.run" not in line:
            continue
        names.append(words[0] if words[0] in ("mv", "rm") else "run")
        if words[0] == "mv":
            shutil.move(words[1], words[2])
        elif words[0] == "rm":
            Path(words[1]).unlink()
        else:
            recipe, _, root = words[words.index("megatron_ext.run") + 1 :]
            assert root == str(run_root)
            assert run(project, Path(recipe).stem, run_root).code == 0
    return names


@pytest.fixture(scope="module")
def often_saved_base(project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The base with step_4 and step_5; tests copy it."""
    return run(project, "base", tmp_path_factory.mktemp("often"), "checkpoint.interval_tokens=1_024")


@pytest.mark.parametrize(
    ("damage", "words", "commands"),
    [
        (damage_its_facts, "stage.json: damaged; ", ["rm", "run"]),
        (lose_its_checkpoint, "step_5: missing, and", ["rm", "run"]),
        (damage_its_checkpoint, "state.json: 2 bytes, was written with", ["mv", "rm"]),
    ],
)
def test_the_remedy_for_a_damaged_parent_leads_back_to_training(
    project: ToyProject,
    often_saved_base: Run,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
    commands: list[str],
) -> None:
    run_root = tmp_path / "runs"
    base = often_saved_base.copied(run_root)
    finished = (base.stage_folder / "stage.json").read_bytes()
    damage(base.stage_folder)
    refused = run(project, "child", run_root)
    assert refused.code == 3, refused.output
    assert words in refused.output
    assert follow(refused.output, project, run_root) == commands
    if commands[-1] != "run":
        refused = run(project, "child", run_root)
        assert "is not finished in" in refused.output
        assert follow(refused.output, project, run_root) == ["run"]
    assert (base.stage_folder / "stage.json").read_bytes() == finished
    assert run(project, "child", run_root).code == 0
