"""The results of the miniature that are kept: of the study as it stands, whole, and the ones that its page states."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.recipe.study_load import load_study

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "recipes" / "miniature"
PAGE = (ROOT / "docs" / "explanation" / "miniature.md").read_text(encoding="utf-8").partition("## Results")[2]


@cache
def results() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "results" / "cpu.json").read_bytes()))


def test_they_are_of_the_arms_and_the_seeds_of_the_study() -> None:
    study = load_study(FOLDER / "study.yaml")
    assert {arm for row in results()["rows"] for arm in row["arms"]} == {arm.id for arm in study.arms}
    seeds = study.recipe.seeds.model_dump()
    assert {(row["stage"], row["seeds_run"]) for row in results()["rows"]} == set(seeds.items())


def test_they_answer_the_comparisons_of_the_study() -> None:
    asked = {
        (finding.name, part.better, part.than, part.stage, part.metric, part.expect, part.within)
        for finding in load_study(FOLDER / "study.yaml").recipe.findings
        for part in finding.comparisons
    }
    answered = {
        (
            name,
            tuple(part["better"]),
            tuple(part["than"]),
            part["stage"],
            part["metric"],
            part["expect"],
            part["within"],
        )
        for name, part in (
            (finding["name"], part) for finding in results()["findings"] for part in finding["comparisons"]
        )
    }
    assert answered == asked


@pytest.mark.parametrize("kind", ["pretrain", "sft", "rl"])
def test_every_value_of_the_average_stands_on_the_page(kind: str) -> None:
    for row in (row for row in results()["rows"] if row["stage"] == kind):
        [cell] = [cell for cell in row["cells"] if cell["metric"] == "average"]
        ends = " ".join(f"{100 * cell['estimate'][key]:.1f}" for key in ("value", "low", "high"))
        value, low, high = ends.split()
        assert f"| {row['label']} | {value} [{low}, {high}] |" in PAGE


def test_every_verdict_stands_on_the_page() -> None:
    for finding in results()["findings"]:
        assert finding["verdict"] != "not run"
        assert re.search(rf"^\| {finding['name']} \*\*{finding['verdict']}\*\* \|", PAGE, re.MULTILINE)
