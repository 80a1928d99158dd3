"""A run tells of the traces that it wrote, and of no other run's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from megatron_ext.plan.stage_plan import ExecutionPlan
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.trace import StepTrace
from tests.support.one_process import one_process
from tests.support.sources import plan_reading, write_source


def run_steps(parts: Parts, folder: Path, steps: Iterable[int]) -> str:
    """What a run of these steps says of its traces."""
    said: list[str] = []
    with StepTrace(parts, folder, say=said.append) as trace:
        for step in steps:
            with trace.step(step):
                pass
    (line,) = said
    return line


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, list[str]]:
    """Steps 2 to 4 where another rank left a file before, then 5 to 6; and the files in the end."""
    folder = tmp_path_factory.mktemp("trace")
    write_source(folder / "toy", [[1, 2, 3, 4, 5, 6, 7, 0]] * 9)
    execution = ExecutionPlan(profile_steps=(2, 3))
    plan = plan_reading({"toy": (folder / "toy", 16)}, global_batch_size=4, execution=execution)
    (folder / "profile").mkdir()
    for rank in (0, 1):
        (folder / "profile" / f"rank_{rank}.json.gz").write_text("of an earlier run")
    with one_process() as groups:
        parts = make_parts(plan, groups)
        first = run_steps(parts, folder / "profile", range(2, 5))
        second = run_steps(parts, folder / "profile", range(5, 7))
    return first, second, sorted(file.name for file in (folder / "profile").iterdir())


def test_what_this_run_wrote_is_named_and_no_file_of_an_earlier_one(lines: tuple[str, str, list[str]]) -> None:
    assert lines[0].startswith("profile: rank_0.json.gz (")


def test_a_run_without_the_planned_steps_says_so_and_keeps_the_traces(lines: tuple[str, str, list[str]]) -> None:
    assert lines[1] == "WARNING: profile.steps 2-3: no trace: this run did none of these steps."
    assert lines[2] == ["rank_0.json.gz", "rank_1.json.gz"]
