"""The studies that ship: counted by hand, comparable, with the paper's numbers where its page has them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from megatron_ext.recipe.load import load_recipe
from megatron_ext.recipe.study_load import load_study
from megatron_ext.recipe.study_schema import ComparisonRecipe
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.study_plan import StudyPlan

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "recipes" / "front_loading"
STUDIES = ["study", "v1", "ratio", "injection", "repetition", "catch_up", "dense_1b"]
PUBLISHED = {f"{base}-{sft}" for base in ("base", "shq", "ldq", "lmq") for sft in ("shq", "ldq", "lmq")}
PUBLISHED |= {"ldq-ldq_2x", "ldq-alf", "ldq-alf_shq", "base-shq_2x"}


@cache
def plan(name: str) -> StudyPlan:
    return make_study_plan(FOLDER / f"{name}.yaml")


def test_every_study_of_the_folder_is_planned_here() -> None:
    found = [path.stem for path in FOLDER.glob("*.yaml") if re.search("^study: ", path.read_text(), re.MULTILINE)]
    assert sorted(found) == sorted(STUDIES)


@pytest.mark.parametrize(
    ("name", "arms", "chain_stages", "unique_stages"),
    [
        # 16 published arms of 3 stages and 4 with RL: one first part, 4 bases, 16 SFT, 4 RL
        ("study", 20, 16 * 3 + 4 * 4, 1 + 4 + 16 + 4),
        ("v1", 12, 12 * 2, 4 + 12),
        ("ratio", 4, 4 * 3, 1 + 4 + 4),
        # early and even are one stage, paper and none two, late three, and SFT behind each
        ("injection", 5, 2 + 2 + 3 + 3 + 4, 2 + 1 + 2 + 2 + 5),
        ("repetition", 4, 4 * 3, 1 + 4 + 4),
        ("catch_up", 4, 4 * 3, 1 + 2 + 4),
        ("dense_1b", 12, 12 * 3, 1 + 4 + 12),
    ],
)
def test_the_graph_has_the_stages_that_a_pencil_counts(
    name: str, arms: int, chain_stages: int, unique_stages: int
) -> None:
    totals = plan(name).totals
    assert (totals.arms, totals.chain_stages, totals.unique_stages) == (arms, chain_stages, unique_stages)


def test_the_study_has_every_arm_of_the_paper_and_marks_those_that_are_ours() -> None:
    arms = {arm.id: arm.note for arm in plan("study").arms}
    grpo = {f"{base}-shq-grpo" for base in ("base", "shq", "ldq", "lmq")}
    assert arms.keys() == PUBLISHED | grpo
    assert {arm for arm, note in arms.items() if note.startswith("ours")} == {"shq-shq-grpo", "ldq-shq-grpo"}


def test_an_arm_file_is_a_few_lines() -> None:
    assert max(len(path.read_text().splitlines()) for path in FOLDER.glob("arms/*.yaml")) <= 10


def test_the_papers_arms_differ_in_their_blends_alone_but_for_what_is_said() -> None:
    found = {(one.stage, one.key): one.permitted_by for one in plan("study").differences}
    assert found == {
        ("pretrain", "data.blend"): "varies",
        ("pretrain", "data.repeated"): "confounds",
        ("sft", "data.blend"): "varies",
        ("sft", "data.repeated"): "confounds",
        ("sft", "budget.tokens"): "confounds",
        ("sft", "budget.flops"): "confounds",
        ("sft", "budget.examples"): "confounds",
    }


def test_every_arm_pretrains_on_1t_tokens() -> None:
    for name in STUDIES:
        for arm in plan(name).arms:
            stages = [plan(name).stage(one) for one in arm.chains[0]]
            tokens = sum(stage.tokens for stage in stages if stage.stage == "pretrain")
            assert tokens == pytest.approx(1e12, rel=1e-5), (name, arm.id)


@pytest.mark.parametrize("name", ["early", "even", "paper", "late"])
def test_the_arms_of_injection_read_80b_reasoning_tokens(name: str) -> None:
    reasoning = 0.0
    for recipe in next(arm.recipes for arm in plan("injection").arms if arm.id == f"{name}-shq"):
        for blend in load_recipe(recipe).blends if "pretrain" in recipe else ():
            shares = {
                part.path.rpartition("/")[2]: entry.share
                for entry, part in zip(blend.entries, blend.parts, strict=True)
            }
            reasoning += blend.tokens * shares.get("lmq.yaml", 0)
    assert reasoning == pytest.approx(80e9)


def test_the_reduced_set_is_read_as_often_as_the_small_one() -> None:
    (repeated,) = [one for one in plan("repetition").differences if one.key == "data.repeated"]
    assert {group.value: group.arms for group in repeated.values} == {
        "none": ("base-shq", "ldq-shq"),
        "openthoughts3 6.67 x": ("shq-shq",),
        "nemotron_sft_reduced 6.67 x": ("ldq_reduced-shq",),
    }


def test_the_matched_catch_up_reads_what_the_other_arm_has_read_before() -> None:
    tokens = {arm.id: plan("catch_up").stage(arm.chains[0][-1]).tokens for arm in plan("catch_up").arms}
    assert tokens["base-shq_80b"] - tokens["base-shq"] == pytest.approx(80e9, rel=1e-3)


def comparisons() -> list[tuple[str, ComparisonRecipe]]:
    return [
        (f"{name}: {finding.name}", comparison)
        for name in STUDIES
        for finding in load_study(FOLDER / f"{name}.yaml").recipe.findings
        for comparison in finding.comparisons
    ]


@pytest.mark.parametrize(
    ("name", "comparison"), comparisons(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_finding_names_a_place_of_the_page(name: str, comparison: ComparisonRecipe) -> None:
    if comparison.paper is None:
        return
    page, _, anchor = comparison.paper.source.partition("#")
    headings = re.findall(r"^#+ (.*)$", (REPOSITORY / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    paper = comparison.paper
    assert paper.better is not None
    assert paper.than is not None
    assert paper.better - paper.than == pytest.approx(paper.delta, abs=0.005)


@pytest.mark.parametrize(
    ("name", "comparison"), comparisons(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_number_of_the_paper_stands_on_its_page_as_it_stands_here(name: str, comparison: ComparisonRecipe) -> None:
    if comparison.paper is None:
        return
    text = (REPOSITORY / comparison.paper.source.partition("#")[0]).read_text()
    for number in (comparison.paper.better, comparison.paper.than):
        assert f"{number:.2f}" in text


def test_the_six_findings_of_the_paper_are_there() -> None:
    assert [finding.name for finding in plan("study").findings] == [
        "front-loading-gain",
        "diversity-in-pretraining",
        "quality-in-sft",
        "latent-effect",
        "naive-scaling-harms",
        "no-catch-up",
    ]
