"""Bad input ends a run before any process group forms, with key, value, rule and remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_ext.runtime.device import has_gpu
from tests.support.toy_project import ToyProject


@pytest.fixture
def project(toy_project: ToyProject, tmp_path: Path) -> ToyProject:
    """A copy that a test may damage."""
    root = tmp_path / "project"
    shutil.copytree(toy_project.root, root, ignore=shutil.ignore_patterns("runs"))
    (root / "site.yaml").write_text(f"data_root: {root}/data\nrun_root: {root}/runs\n")
    return ToyProject(root)


def refused(project: ToyProject, *overrides: str, flags: tuple[str, ...] = ()) -> tuple[int, str]:
    run_root = project.root / "refused"
    run = project.run(run_root, *overrides, flags=flags)
    assert run.code != 0, run.output
    assert not run_root.exists(), "a refused run wrote something"
    assert run.output.rstrip().endswith(f"megatron_ext.run: exit code {run.code}")
    assert "Traceback" not in run.output
    return run.code, run.output


def test_an_unknown_key_names_its_line_and_the_nearest_key(project: ToyProject) -> None:
    project.recipe.write_text(project.recipe.read_text().replace("micro_batch_size", "micro_batchsize"))
    code, output = refused(project)
    assert code == 2
    assert "pretrain.yaml:12" in output
    assert "micro_batch_size" in output


def test_a_wrong_pattern_symbol_gets_a_caret(project: ToyProject) -> None:
    model = project.root / "model.yaml"
    model.write_text(model.read_text().replace("M-M*M-", "M-X*M-"))
    code, output = refused(project)
    assert code == 2
    assert "^" in output
    assert "model.yaml:2" in output


def test_an_impossible_layout_lists_the_legal_ones(project: ToyProject) -> None:
    code, output = refused(project, "parallel.tensor_model_parallel_size=3")
    assert code == 2
    assert "tensor_model_parallel_size" in output
    assert "1, 2" in output


def test_missing_data_says_what_builds_it(project: ToyProject) -> None:
    (project.root / "data" / "sums.manifest.json").unlink()
    code, output = refused(project)
    assert code == 3
    assert "data_tools tokenize" in output


def test_damaged_data_names_both_sizes(project: ToyProject) -> None:
    file = project.root / "data" / "sums.bin"
    whole = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(whole - 2)
    code, output = refused(project)
    assert code == 3
    assert f"{whole:,}" in output
    assert f"{whole - 2:,}" in output


def test_token_ids_beyond_the_vocabulary_are_refused(project: ToyProject) -> None:
    code, output = refused(project, "model.vocab_size=200")
    assert code == 3
    assert "vocab_size" in output
    assert "289" in output  # what the tokenizer has


def test_another_tokenizer_than_the_datas_is_refused(project: ToyProject) -> None:
    file = project.root / "data" / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    code, output = refused(project)
    assert code == 3
    assert "tokenizer" in output


def test_a_checkpoint_whose_tokenizer_was_changed_is_refused(project: ToyProject) -> None:
    cut = project.run(project.root / "runs", "training.max_steps=1")
    assert cut.code == 0, cut.output
    copy = cut.stage_folder / "checkpoints" / "step_1" / "tokenizer" / "tokenizer.json"
    copy.write_text(copy.read_text() + "\n")
    again = project.run(project.root / "runs")
    assert again.code == 3
    assert "step_1: this checkpoint is damaged" in again.output
    assert "tokenizer.json: " in again.output
    assert len(again.losses) == 1


def test_an_existing_run_with_another_meaning_is_refused_and_kept(project: ToyProject) -> None:
    cut = project.run(project.root / "runs", "training.max_steps=1")
    plan_file = cut.stage_folder / "plan.json"
    plan = json.loads(plan_file.read_text())
    plan["meaning"]["seed"] = 99
    plan_file.write_text(json.dumps(plan))
    again = project.run(project.root / "runs")
    assert again.code == 2
    assert "seed: there 99, here 1234" in again.output
    assert json.loads(plan_file.read_text())["meaning"]["seed"] == 99


def test_what_one_rank_cannot_read_ends_all_ranks_with_its_message(project: ToyProject) -> None:
    file = project.root / "data" / "sums.bin"
    whole = file.stat().st_size
    file.write_bytes(b"\xff\xff" * (whole // 2))  # of the right size: found only when the row is read
    run = project.run(project.root / "runs", processes=2)
    assert "megatron_ext.run: exit code 3" in run.output
    assert "65,535" in run.output or "65535" in run.output
    assert "Traceback" not in run.output.split("ChildFailedError")[0].split("torch/distributed")[0]


def test_torchrun_workers_name_the_code_in_their_last_line(project: ToyProject) -> None:
    run = project.run(project.root / "refused", "parallel.tensor_model_parallel_size=3", processes=2, is_launched=True)
    assert run.code == 1  # torchrun's own
    assert "megatron_ext.run: exit code 2" in run.output
    assert run.output.count("error: ") == 1, "every rank told the same error"


def test_a_missing_recipe_is_a_usage_error(project: ToyProject) -> None:
    project.recipe.unlink()
    code, output = refused(project)
    assert code == 2
    assert "pretrain.yaml" in output


def test_a_full_disk_is_an_error_of_the_environment(project: ToyProject) -> None:
    cut = project.run(project.root / "runs", "training.max_steps=1")
    (cut.stage_folder / "plan.json.partial").symlink_to("/dev/full")
    run = project.run(project.root / "runs", "training.max_steps=2")
    assert run.code == 4
    assert "No space left on device.\n  The checkpoints that are there are untouched. Make room" in run.output
    assert "Traceback" not in run.output


def test_an_exit_json_that_cannot_be_written_hides_nothing(project: ToyProject) -> None:
    cut = project.run(project.root / "runs", "training.max_steps=1")
    (cut.stage_folder / "exit.json.partial").symlink_to("/dev/full")
    run = project.run(project.root / "runs", "training.max_steps=2")
    assert run.code == 0, run.output
    assert "cut at step 2 of 10" in run.output
    assert "exit.json: not written (No space left on device)" in run.output


def test_a_damaged_plan_json_is_named_with_its_remedy(project: ToyProject) -> None:
    cut = project.run(project.root / "runs", "training.max_steps=1")
    first = cut.losses
    plan_file = cut.stage_folder / "plan.json"
    plan_file.write_text('{"stage": ')
    run = project.run(project.root / "runs", "training.max_steps=2")
    assert run.code == 3
    assert f"{plan_file}: damaged: it holds no stage plan." in run.output
    plan_file.unlink()  # as it says
    assert project.run(project.root / "runs", "training.max_steps=2").losses[:1] == first


@pytest.mark.skipif(has_gpu(), reason="says what happens without a GPU")
def test_layers_that_cannot_run_here_are_refused_before_a_parent_is_asked_for(project: ToyProject) -> None:
    child = project.root / "child.yaml"
    blend = "[{source: words.yaml, share: 1, max_epochs: 9}]"
    child.write_text(f"extends: pretrain.yaml\ninit_from: pretrain.yaml\ndata: {{blend: {blend}}}\n")
    keys = ("training.backend=te",)
    run = project.run(project.root / "refused", *keys, recipe=child)
    assert (run.code, "training.backend: te needs" in run.output) == (4, True), run.output
    assert not (project.root / "refused").exists()
    run = project.run(project.root / "refused", recipe=child)
    assert (run.code, "is not trained in" in run.output) == (2, True), run.output
