"""The commands of docs/how-to/keep-long-answers.md do what the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.manifest import read_manifest
from data_tools.tokenizer import train

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/how-to/keep-long-answers.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(block: str) -> subprocess.CompletedProcess[str]:
    """Runs a block of the page in a shell in which `python` is this one."""
    script = f'set -e\npython() {{ "{sys.executable}" "$@"; }}\n{block}'
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_the_page_builds_the_set_from_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/demo/raw").mkdir(parents=True)
    answers = ["4", "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"]
    rows = [json.dumps({"text": f"Question?\n\nAnswer: {answer}", "id": answer}) for answer in answers]
    Path("data/demo/raw/ldq.jsonl").write_text("\n".join(rows))
    train(["data/demo/raw/ldq.jsonl"], "text", 275, "data/demo/tokenizer")
    filtered, refused, error, ruled, merged, demo = BLOCKS
    for block in (filtered, ruled, merged, demo):
        done = run(block)
        assert done.returncode == 0, done.stderr
        if block == filtered:
            assert re.search(r"documents +│ 1 ", done.stdout)
            assert "│ 1 (answer_tokens > 8)" in done.stdout
            done = run(refused)
            assert (done.returncode, done.stderr) == (3, error)
    assert (read_manifest("data/mine/long").documents, read_manifest("data/mine/long").left_out) == (2, 2)
    assert read_manifest("data/mine/long").answer_rule == "after: output: "
    assert (read_manifest("data/mine/ldq_long").documents, read_manifest("data/mine/ldq_long").left_out) == (1, 1)
