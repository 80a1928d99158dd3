"""A checkpoint that is not as it was written is refused, with the command that gives way to the one before it."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.errors import DataError
from megatron_ext.models.build import build_model
from megatron_ext.rollout.cli import main_generate
from megatron_ext.training.checkpoint import load_weights
from megatron_ext.training.file_list import damage_of, read_plan, require_whole
from tests.support.one_process import one_process
from tests.support.toy_project import Run, ToyProject


@pytest.fixture(scope="module")
def cut(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Checkpoints step_2 and step_3, in bf16; tests work on copies."""
    run = toy_project.run(
        tmp_path_factory.mktemp("cut"), "precision=bf16", "checkpoint.interval_tokens=1_024", "training.max_steps=3"
    )
    assert run.code == 0, run.output
    return run


@pytest.fixture
def checkpoints(cut: Run, tmp_path: Path) -> Path:
    shutil.copytree(cut.stage_folder / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def shorten(path: Path) -> None:
    with (path / "__0_0.distcp").open("r+b") as file:
        file.truncate((path / "__0_0.distcp").stat().st_size - 1)


def flip_a_byte(path: Path) -> None:
    with (path / "__0_0.distcp").open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)[0]
        file.seek(100_000)
        file.write(bytes([byte ^ 1]))


def lose(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def scribble(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-1] + b"#")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "shortened": (shorten, "was written with"),
    "byte flipped": (flip_a_byte, "__0_0.distcp: of the right size, but its content changed since it was written"),
    "weights missing": (lose("__0_0.distcp"), "__0_0.distcp: missing"),
    "core's index missing": (lose(".metadata"), ".metadata: missing"),
    "tokenizer missing": (lose("tokenizer/tokenizer.json"), "tokenizer.json: missing"),
    "plan changed": (scribble("plan.json"), "plan.json: of the right size, but its content changed"),
    "counters changed": (scribble("state.json"), "state.json: of the right size, but its content changed"),
    "half written": (lose("files.json"), "files.json: missing; it is written last, so the checkpoint is half written"),
    "list damaged": (scribble("files.json"), "files.json: not a list of files"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_damage_is_found_and_the_whole_checkpoint_before_it_named(checkpoints: Path, kind: str) -> None:
    damage, words = DAMAGES[kind]
    path = checkpoints / "step_3"
    require_whole(path)
    damage(path)
    with pytest.raises(DataError) as refusal:
        require_whole(path)
    message = str(refusal.value)
    assert words in message
    assert f"mv {path} {checkpoints}/damaged_step_3" in message
    assert f"The newest whole checkpoint before it is {checkpoints}/step_2 (every file verified)" in message


def test_damaged_ones_before_it_are_moved_away_too(checkpoints: Path) -> None:
    for step in (2, 3):
        flip_a_byte(checkpoints / f"step_{step}")
    with pytest.raises(DataError, match="There is no whole checkpoint before it: the next run begins at step 1") as no:
        require_whole(checkpoints / "step_3")
    moves = [line.split()[1:] for line in str(no.value).splitlines() if line.startswith("    mv ")]
    assert moves == [[f"{checkpoints}/step_{step}", f"{checkpoints}/damaged_step_{step}"] for step in (2, 3)]


def test_beside_a_damaged_one_that_was_moved_away_the_newest_whole_one_is_named(checkpoints: Path) -> None:
    away = (checkpoints / "step_3").rename(checkpoints / "damaged_step_3")
    flip_a_byte(away)
    with pytest.raises(DataError, match=f"  Take a whole one: {checkpoints}/step_2$"):
        require_whole(away)


def test_ranks_that_share_the_work_see_every_file_once(checkpoints: Path) -> None:
    path = checkpoints / "step_3"
    listed = json.loads((path / "files.json").read_text())
    assert set(listed) == {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()} - {"files.json"}
    for name in listed:
        (path / name).unlink()
    seen = [damage_of(path, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(map(len, seen)) == [(len(listed) + more) // 3 for more in range(3)], (
        "shares differ by one file at most"
    )
    assert len({line for lines in seen for line in lines}) == len(listed)


def test_the_command_in_the_message_lets_the_run_go_on(toy_project: ToyProject, cut: Run, tmp_path: Path) -> None:
    shutil.copytree(cut.run_root, tmp_path / "runs")
    stage = Run(0, cut.output, tmp_path / "runs").stage_folder
    flip_a_byte(stage / "checkpoints" / "step_3")
    refused = toy_project.run(tmp_path / "runs", "precision=bf16", processes=2)
    assert "megatron_ext.run: exit code 3" in refused.output
    assert "step_3: this checkpoint is damaged; nothing was loaded" in refused.output
    assert "Traceback" not in refused.output
    assert json.loads((stage / "exit.json").read_text())["code"] == 3
    (command,) = [line for line in refused.output.splitlines() if line.startswith("    mv ")]
    _, source, target = command.split()
    shutil.move(source, target)
    rest = toy_project.run(tmp_path / "runs", "precision=bf16")
    assert rest.code == 0, rest.output
    assert "goes on at step 2" in rest.output
    assert [line["step"] for line in rest.metrics] == list(range(1, 11))


def test_generate_reads_a_bf16_runs_checkpoint(cut: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_generate(arguments(cut.stage_folder)) == 0
    assert capsys.readouterr().out.startswith("3 plus 4")


def test_generate_refuses_a_damaged_checkpoint_in_the_same_words(checkpoints: Path) -> None:
    scribble("plan.json")(checkpoints / "step_3")
    with pytest.raises(DataError, match=r"step_3: this checkpoint is damaged; nothing was loaded(.|\n)*Move away"):
        main_generate(arguments(checkpoints / "step_3"))


def test_weights_of_another_shape_are_refused_by_name(checkpoints: Path) -> None:
    path = checkpoints / "step_3"
    plan = read_plan(path)
    wider = plan.model_copy(update={"model": plan.model.model_copy(update={"ffn_hidden_size": 256})})
    with one_process() as groups:
        model = build_model(wider, groups)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        with pytest.raises(DataError) as refusal:
            load_weights(path, model, groups)
        assert all((parameter == before[name]).all() for name, parameter in model.named_parameters())
    assert "step_3: its weights are those of another model; nothing was loaded" in str(refusal.value)
    assert "decoder.layers.1.mlp.linear_fc1.weight: there 128 x 64, here 256 x 64" in str(refusal.value)


def test_a_checkpoint_of_another_stage_is_refused(toy_project: ToyProject, cut: Run, tmp_path: Path) -> None:
    first = toy_project.run(tmp_path, "precision=bf16", "seed=7", "training.max_steps=1")
    assert first.code == 0, first.output
    foreign = first.stage_folder / "checkpoints" / "step_3"
    shutil.copytree(cut.stage_folder / "checkpoints" / "step_3", foreign)
    refused = toy_project.run(tmp_path, "precision=bf16", "seed=7")
    assert refused.code == 2
    assert f"{foreign}: is a checkpoint of {cut.stage_folder.name}, a stage with another meaning" in refused.output
    assert "seed: there 1234, here 7" in refused.output
    assert f"mv {foreign} {foreign.with_name('foreign_step_3')}" in refused.output


def arguments(checkpoint: Path) -> argparse.Namespace:
    return argparse.Namespace(
        checkpoint=checkpoint,
        prompt="3 plus 4",
        chat=False,
        max_new_tokens=4,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        seed=0,
    )
