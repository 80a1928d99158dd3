"""The miniature study that ships, in both forms: counted by hand, and of the same shape as the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.recipe.study_load import load_study
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.study_plan import StudyPlan

FOLDER = Path(__file__).parents[3] / "recipes" / "miniature"
FORMS = ("study", "study_gpu")


@pytest.fixture(scope="module")
def plans() -> dict[str, StudyPlan]:
    """Of the recipes that ship; by declared sizes where the data is not made."""
    return {name: make_study_plan(FOLDER / f"{name}.yaml", may_be_provisional=True) for name in FORMS}


@pytest.mark.parametrize(
    ("name", "arms", "chain_stages", "unique_stages"),
    [
        # nine arms of three stages and two of four, two seeds; one first part, four bases, nine SFT, two RL of each
        ("study", 11, 2 * (9 * 3 + 2 * 4), 2 * (1 + 4 + 9 + 2)),
        # twelve arms of three stages, four of four, two more of three, three seeds
        ("study_gpu", 18, 3 * (14 * 3 + 4 * 4), 3 * (1 + 4 + 14 + 4)),
    ],
)
def test_the_graph_has_the_stages_that_a_pencil_counts(
    plans: dict[str, StudyPlan], name: str, arms: int, chain_stages: int, unique_stages: int
) -> None:
    totals = plans[name].totals
    assert (totals.arms, totals.chain_stages, totals.unique_stages) == (arms, chain_stages, unique_stages)


@pytest.mark.parametrize("name", FORMS)
def test_the_first_part_is_three_fifths_of_every_base(plans: dict[str, StudyPlan], name: str) -> None:
    for arm in plans[name].arms:
        first, second = (plans[name].stage(stage).tokens for stage in arm.chains[0][:2])
        assert first / (first + second) == pytest.approx(0.6)


def test_both_forms_ask_the_findings_of_the_papers_matrix_with_its_numbers_but_for_sft_on_lmq() -> None:
    paper = load_study(FOLDER.parent / "front_loading" / "study.yaml").recipe.findings
    numbers = {one.name: {part.paper.delta for part in one.comparisons if part.paper} for one in paper}
    for name in FORMS:
        found = load_study(FOLDER / f"{name}.yaml").recipe.findings
        assert [one.name for one in found] == [one.name for one in paper]
        for one in found:
            deltas = {part.paper.delta for part in one.comparisons if part.paper}
            assert deltas == numbers[one.name] - ({13.78} if one.name == "quality-in-sft" else set())
