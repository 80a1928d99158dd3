"""What people name of stages and checkpoints, and how results are said in a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import DataError
from megatron_ext.study.lineage.record import TaskFacts
from megatron_ext.study.lineage.tree import _task
from megatron_ext.study.named import checkpoint_of


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """Two stages whose ids begin alike, the first with two checkpoints."""
    for step in (5, 10):
        folder = tmp_path / "sft-35fc" / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
    (tmp_path / "sft-3a00").mkdir()
    return tmp_path


def refusal(path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        checkpoint_of(str(path))
    return str(caught.value)


def test_the_beginning_of_an_id_names_its_stage(stages: Path) -> None:
    last = stages / "sft-35fc" / "checkpoints" / "step_10"
    assert checkpoint_of(str(stages / "sft-35")) == checkpoint_of(str(stages / "sft-35fc")) == last


def test_a_beginning_of_several_ids_is_refused_with_all_of_them(stages: Path) -> None:
    assert refusal(stages / "sft-3") == f"{stages / 'sft-3'}: begins the names of sft-35fc, sft-3a00; write one of them"


def test_a_step_that_is_not_there_is_refused_with_those_that_are(stages: Path) -> None:
    asked = stages / "sft-35fc" / "checkpoints" / "step_99"
    assert refusal(asked) == f"{asked}: no such checkpoint; there are step_5, step_10"


def test_a_name_alone_may_be_an_arm_and_needs_its_study() -> None:
    assert refusal("base-sft").endswith("or an arm with its study: --study STUDY.yaml")


def task(metric: str, value: float, low: float, high: float) -> TaskFacts:
    return TaskFacts(
        task="verifiable:digits.jsonl",
        name="digits",
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=24,
        data_id="d",
        contamination="clean",
        contamination_note="",
    )


def test_a_result_has_its_unit_and_says_of_what_its_interval_is() -> None:
    shown = _task(task("avg@1", 0.25, 0.12, 0.449))
    assert shown == "digits: avg@1 25 % [12, 44.9], this evaluation alone, of 24 items; contamination clean"
    shown = _task(task("loss", 5.953, 5.716, 6.329))
    assert shown == (
        "digits: loss 5.953 nats per token [5.716, 6.329], this evaluation alone, of 24 tokens; contamination clean"
    )
