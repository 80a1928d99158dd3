"""Exports and imports that are killed, and two that meet: a folder of the asked name is whole, or not there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.atomic_files import only_writer
from data_tools.errors import DataError
from megatron_ext.__main__ import main
from megatron_ext.convert.export import export_checkpoint
from megatron_ext.convert.import_hf import import_checkpoint
from megatron_ext.rollout.cli import find_checkpoint
from tests.support.toy_project import Run


@pytest.fixture(scope="module")
def checkpoint(toy_run: Run) -> Path:
    return find_checkpoint(toy_run.stage_folder)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("hf") / "toy").path


def kill_when_there_is(file: Path, *arguments: str) -> None:
    """Starts a command and kills it as soon as there is a file."""
    command = [sys.executable, "-m", "megatron_ext", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 600  # of a busy machine
        while not file.exists():
            assert process.poll() is None, f"ended before it was killed: {process.stderr and process.stderr.read()}"
            assert time.monotonic() < end, f"{file} was never there"
            time.sleep(0.001)
        assert process.poll() is None, "ended before it was killed"
    finally:
        process.kill()
        process.communicate()


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "README.md"], ids=["while-it-writes", "while-it-verifies"])
def test_a_killed_export_leaves_no_folder_of_its_name_and_the_next_one_makes_it(
    checkpoint: Path, exported: Path, tmp_path: Path, file: str
) -> None:
    to = tmp_path / exported.name
    kill_when_there_is(tmp_path / f".writing_{to.name}" / file, "export", str(checkpoint), "--to", str(to), "--verify")
    assert not to.exists()
    assert (tmp_path / f".writing_{to.name}").is_dir()
    assert main(["export", str(checkpoint), "--to", str(to)]) == 0
    assert content(to) == content(exported)
    assert [path.name for path in tmp_path.iterdir()] == [to.name]


@pytest.mark.slow
def test_a_killed_import_leaves_no_stage_and_the_next_one_makes_it(exported: Path, tmp_path: Path) -> None:
    stages = tmp_path / "stages"
    written = stages / f".importing_{exported.name}" / "stage.json"
    kill_when_there_is(written, "import", str(exported), "--to", str(tmp_path), "--verify")
    assert [path.name for path in stages.iterdir() if not path.name.startswith(".")] == []
    made = import_checkpoint(exported, tmp_path)
    assert [path.name for path in stages.iterdir()] == [made.folder.name]
    again = export_checkpoint(made.folder / "checkpoints" / "step_0", tmp_path / "again").path
    assert content(again)["model.safetensors"] == content(exported)["model.safetensors"]


def test_of_two_exports_into_one_folder_the_second_is_refused_and_disturbs_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    writing = tmp_path / ".writing_hf"
    writing.mkdir()
    (writing / "model.safetensors").write_bytes(b"of the first")
    with only_writer(writing), pytest.raises(DataError, match=f"{writing}: another process is writing it"):
        export_checkpoint(checkpoint, tmp_path / "hf")
    assert (writing / "model.safetensors").read_bytes() == b"of the first"


def test_of_two_imports_of_one_folder_the_second_is_refused_and_disturbs_nothing(
    exported: Path, tmp_path: Path
) -> None:
    writing = tmp_path / "stages" / f".importing_{exported.name}"
    writing.mkdir(parents=True)
    (writing / "plan.json").write_text("of the first")
    with only_writer(writing), pytest.raises(DataError, match=f"{writing}: another process is writing it"):
        import_checkpoint(exported, tmp_path)
    assert (writing / "plan.json").read_text() == "of the first"
