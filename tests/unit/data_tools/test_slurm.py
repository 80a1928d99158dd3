"""What is told to Slurm, and where it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools import slurm
from data_tools.errors import SetupError


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("partition=cpu", "#SBATCH --partition=cpu"),
        ("--exclusive", "#SBATCH --exclusive"),
        ("c=4", "#SBATCH -c 4"),
        ("comment=two words", '#SBATCH --comment="two words"'),
    ],
)
def test_an_option_becomes_a_line_with_or_without_its_dashes(option: str, line: str) -> None:
    assert slurm.directive(option) == line


def test_a_machine_without_slurm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="there is no squeue on this machine"):
        slurm.queue()
    with pytest.raises(SetupError, match="there is no sbatch on this machine; run this where there is one: sbatch a"):
        slurm.submit(Path("a"), remedy="")


def test_squeue_is_asked_again_before_it_is_said_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in squeue's place: it fails once, and then lists an array's task and a job."""
    program = tmp_path / "squeue"
    program.write_text(
        f"#!/bin/bash\necho >> {tmp_path}/asked\n"
        f"[[ $(wc -l < {tmp_path}/asked) == 1 ]] && {{ echo timed out >&2; exit 1; }}\n"
        "echo '12|3|PENDING|me|Priority||a|b'\necho '13|N/A|RUNNING|me|None|n7|c'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "_PAUSES_S", (0.0,))
    first, second = slurm.queue()
    assert (first.id, first.is_running, first.reason, first.name) == ("12_3", False, "Priority", "a|b")
    assert (second.id, second.is_running, second.nodes, second.name) == ("13", True, "n7", "c")
    (tmp_path / "asked").write_text("")
    program.write_text("#!/bin/bash\necho timed out >&2; exit 1\n")
    with pytest.raises(SetupError, match="squeue: timed out"):
        slurm.queue()
