"""One stage and its evaluation, by `megatron-ext study run` on this machine from the command to the results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from megatron_ext.evaluate.results import read_results
from tests.support.toy_project import SITE, ToyProject, environment
from tests.support.toy_study import add_study

STUDY = """\
study: short
arms: [arms/mixed.yaml, arms/sums.yaml]
varies: [data.blend]
evaluate: {pretrain: [evaluate/held.yaml]}
"""
SUMS = """\
extends: common.yaml
data: {blend: [{source: sums.yaml, share: 1}]}
"""


def test_a_study_trains_and_evaluates_one_of_its_arms_and_begins_nothing_twice(
    toy_project: ToyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "toy"
    shutil.copytree(toy_project.root, root)
    add_study(ToyProject(root))
    (root / "site.yaml").write_text(SITE.format(root=root))
    (root / "short.yaml").write_text(STUDY)
    (root / "sums_alone.yaml").write_text(SUMS)
    (root / "arms" / "mixed.yaml").write_text("arm: mixed\nstages: [../common.yaml]\n")
    (root / "arms" / "sums.yaml").write_text("arm: sums\nstages: [../sums_alone.yaml]\n")
    monkeypatch.chdir(root)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    command = ["study", "run", "short.yaml", "--site", "site.yaml", "--arms", "mixed", "--workers", "2"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    [stage] = (root / "runs" / "stages").glob("pretrain-*")
    [evaluation] = (stage / "evaluations").iterdir()
    nodes = [stage.name, f"{stage.name}.{evaluation.name}"]
    told = [line.split()[:2] for line in lines if line.startswith(("running ", "finished "))]
    assert told == [[word, name] for name in nodes for word in ("running", "finished")]
    assert lines[-1] == "short: 2 of 2 finished"
    assert json.loads((stage / "stage.json").read_text())["checkpoint"] == "checkpoints/step_6"
    steps = [json.loads(line)["step"] for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 7))
    losses = {task.name: task.metric("loss").value for task in read_results(evaluation).tasks}
    assert losses.keys() == {"held-out/sums", "held-out/words"}
    assert all(5 < loss < 6.2 for loss in losses.values())  # log(512), of who has learned nothing, is 6.24
    assert main(["study", "status", "short.yaml", "--site", "site.yaml", "--json"]) == 0
    states = {node["name"]: node["state"] for node in json.loads(capsys.readouterr().out)["nodes"]}
    assert [states[name] for name in nodes] == ["finished", "finished"]
    assert list(states.values()).count("waiting") == 2  # of the arm that was not chosen
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("short: 0 nodes to run in ")
