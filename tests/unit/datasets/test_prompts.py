"""Prompts are drawn in shuffled passes, once each before any comes again, and never more often than permitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import DataError
from megatron_ext.datasets.prompts import PromptCursor, planned_prompts
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.load import load_recipe
from tests.support.rl_project import add_rl, prompt_line, write_prompts
from tests.support.toy_project import make_toy_project


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_toy_project(tmp_path_factory.mktemp("prompts"))
    add_rl(project)
    return project.root


@pytest.fixture(scope="module")
def plan(root: Path) -> StagePlan:
    return make_stage_plan(load_recipe(root / "rl.yaml", site=root / "site.yaml"))


def cursor_of(plan: StagePlan) -> PromptCursor:
    return PromptCursor(plan, planned_prompts(plan))


def test_a_pass_draws_every_prompt_once(plan: StagePlan) -> None:
    drawn = cursor_of(plan).draw(24)
    assert len({one.row.id for one in drawn}) == 24
    assert [one.place for one in drawn] == list(range(24))


def test_a_second_pass_has_another_order_and_other_seeds(plan: StagePlan) -> None:
    drawn = cursor_of(plan).draw(48)
    first, second = drawn[:24], drawn[24:]
    assert {one.row.id for one in first} == {one.row.id for one in second}
    assert [one.row.id for one in first] != [one.row.id for one in second]
    assert len({one.seed for one in drawn}) == 48


def test_a_cursor_goes_on_exactly_where_another_stood(plan: StagePlan) -> None:
    whole, first, second = cursor_of(plan), cursor_of(plan), cursor_of(plan)
    expected = whole.draw(30)
    before = first.draw(17)
    second.load_state_dict(first.state_dict())
    assert [*before, *second.draw(13)] == expected


def test_what_is_not_permitted_is_not_drawn(plan: StagePlan) -> None:
    cursor = cursor_of(plan)
    cursor.draw(47)
    with pytest.raises(DataError, match="47 of 48 permitted prompts are drawn and 2 more were asked for"):
        cursor.draw(2)


def test_a_place_in_another_set_is_refused(plan: StagePlan) -> None:
    with pytest.raises(DataError, match="prompt position: size: the checkpoint has 23, this run 24"):
        cursor_of(plan).load_state_dict({"version": 1, "drawn": 3, "size": 23})


def test_prompts_that_were_changed_since_the_plan_are_refused(plan: StagePlan, root: Path) -> None:
    file = root / "data" / "sums.prompts.jsonl"
    before = file.read_bytes()
    write_prompts(file, [prompt_line(n) for n in range(1, 33)])
    try:
        with pytest.raises(DataError, match="holds other prompts than were planned"):
            planned_prompts(plan)
    finally:
        file.write_bytes(before)
