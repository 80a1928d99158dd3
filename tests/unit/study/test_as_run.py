"""What is known of a study's earlier runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.study.as_run import recorded


def test_a_damaged_record_of_a_run_is_named_before_it_is_written_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "studies" / "toy" / "study.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"name": "toy"')
    assert recorded(tmp_path, "toy") is None
    said = capsys.readouterr().err
    assert said.startswith(f"WARNING: {file}: ")
    assert said.endswith(": arms and seeds of earlier runs are not known\n")
    assert recorded(tmp_path, "never_run") is None
    assert capsys.readouterr().err == ""
