"""A source never repeats more often than it may; each remedy of the refusal works."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from data_tools.blend_plan import available_samples, share_between, split_samples, written_share
from tests.support.pencil_project import PencilProject, refused


@pytest.fixture
def project(project: PencilProject) -> PencilProject:
    """Source `b` has 100 tokens: 6 samples of 16, where 10 are needed."""
    project.write_dataset("b", tokens=100)
    return project


def refusal(project: PencilProject, *overrides: str) -> str:
    return refused(lambda: project.plan(*overrides))


def remedies(project: PencilProject, *overrides: str) -> dict[str, str]:
    """The number that the refusal gives for each key."""
    text = refusal(project, *overrides)
    patterns = {
        "budget": r"budget\.tokens to ([\d,]+)",
        "share": r"share to ([\d.]+)",
        "epochs": r"max_epochs to (\d+)",
    }
    return {name: found[1] for name, pattern in patterns.items() if (found := re.search(pattern, text))}


def test_a_source_that_cannot_supply_its_share_is_refused_with_three_remedies(project: PencilProject) -> None:
    assert refusal(project).splitlines() == [
        'pretrain.yaml:7: data.blend[1].share: source "b" cannot supply its share.',
        "  needed   160 processed tokens (25.0 % of budget 640)",
        "  has      100 tokens x max_epochs 1 = 100",
        "  Lower budget.tokens to 384, lower the share to 0.1500 and raise others by as much, "
        "or raise max_epochs to 2.",
    ]


def test_the_lower_budget_makes_the_plan_pass_and_one_step_more_does_not(project: PencilProject) -> None:
    budget = int(remedies(project)["budget"].replace(",", ""))
    shorter = "schedule={warmup_tokens: 64, decay_tokens: 64}"
    plan = project.plan(f"budget.tokens={budget}", shorter)
    assert plan.data.sources[1].samples == 6
    assert "cannot supply" in refusal(project, f"budget.tokens={budget + 64}", shorter)


def test_the_lower_budget_makes_the_plan_pass_behind_a_ramp_too(project: PencilProject) -> None:
    # 7 steps of 2 samples, then 7 full ones: 42 samples; b has 6, as many as 3 full steps want.
    ramp = ("training.ramp_tokens=224", "training.ramp_start_batch_size=2", "training.ramp_increment=2")
    shorter = "schedule={warmup_tokens: 64, decay_tokens: 64}"
    budget = int(remedies(project, *ramp)["budget"].replace(",", ""))
    assert budget == (7 * 2 + 3 * 4) * 16
    plan = project.plan(*ramp, f"budget.tokens={budget}", shorter)
    assert (plan.batch.total_tokens, plan.data.sources[1].samples) == (budget, 6)
    assert "cannot supply" in refusal(project, *ramp, f"budget.tokens={budget + 64}", shorter)


def test_a_ramp_that_reads_too_much_leaves_no_budget_to_lower(project: PencilProject) -> None:
    long = ("training.ramp_tokens=448", "training.ramp_start_batch_size=2", "training.ramp_increment=2")
    assert "budget" not in remedies(project, *long)


def test_the_lower_share_makes_the_plan_pass(project: PencilProject) -> None:
    share = float(remedies(project)["share"])
    plan = project.plan(f"data.blend[1].share={share}", f"data.blend[0].share={1 - share}")
    assert plan.data.sources[1].samples == 6


def test_the_raised_epochs_make_the_plan_pass_and_one_less_does_not(project: PencilProject) -> None:
    overrides = ("budget.tokens=6400", "data.blend[0].max_epochs=99")
    epochs = int(remedies(project, *overrides)["epochs"])
    assert epochs == 17  # 100 samples of 16 tokens and a label are 1,601 tokens
    assert project.plan(*overrides, f"data.blend[1].max_epochs={epochs}").data.sources[1].epochs == 16.0
    assert "cannot supply" in refusal(project, *overrides, f"data.blend[1].max_epochs={epochs - 1}")


def test_every_source_that_falls_short_is_named_with_a_budget_that_suits_all(project: PencilProject) -> None:
    project.write_dataset("a", tokens=200)  # 12 samples of the 30
    text = refusal(project)
    assert text.startswith("2 problems\n")
    assert text.count("Lower budget.tokens to 256,") == 2
    assert project.plan("budget.tokens=256", "schedule={warmup_tokens: 64, decay_tokens: 64}").batch.total_steps == 4


def test_the_last_label_needs_one_token_more(project: PencilProject) -> None:
    project.write_dataset("b", tokens=160)
    assert "needed   160 processed tokens + 1 for the last label (25.0 % of budget 640)" in refusal(project)
    project.write_dataset("b", tokens=161)
    assert project.plan().data.sources[1].samples == 10


def test_part_of_an_epoch_can_be_permitted(project: PencilProject) -> None:
    assert "100 tokens x max_epochs 1.6 = 160\n" in refusal(project, "data.blend[1].max_epochs=1.6")
    assert project.plan("data.blend[1].max_epochs=1.61").data.sources[1].epochs == 1.6


def test_where_no_budget_is_small_enough_none_is_offered(project: PencilProject) -> None:
    project.write_dataset("b", tokens=16)
    assert refusal(project).splitlines()[-1] == "  Raise max_epochs to 11."


@pytest.mark.parametrize(
    ("tokens", "epochs", "samples"),
    [(16, 1, 0), (17, 1, 1), (32, 1, 1), (33, 1, 2), (16, 2, 1), (0, 5, 0), (100, 0.33, 2)],
)
def test_samples_of_some_passes_are_counted_to_the_token(tokens: int, epochs: float, samples: int) -> None:
    assert available_samples(tokens, epochs, 16) == samples


FLOOR = "data.blend[1].min_epochs=2"
OFTEN = "data.blend[1].max_epochs=9"


def test_a_source_that_is_read_less_often_than_it_must_is_refused_with_three_remedies(project: PencilProject) -> None:
    assert refusal(project, FLOOR, OFTEN).splitlines() == [
        'pretrain.yaml:7: data.blend[1].share: source "b" is read less often than it must.',
        "  gives    160 processed tokens (25.0 % of budget 640)",
        "  wanted   100 tokens x min_epochs 2 = 200",
        "  Raise budget.tokens to 768, raise the share to 0.3000 and lower others by as much, "
        "or lower min_epochs to 1.6.",
    ]


def test_each_remedy_of_a_floor_makes_the_plan_pass(project: PencilProject) -> None:
    assert project.plan(FLOOR, OFTEN, "budget.tokens=768").data.sources[1].samples == 12  # 192 of 200: no more fit
    shares = ("data.blend[1].share=0.3", "data.blend[0].share=0.7")
    assert project.plan(FLOOR, OFTEN, *shares).data.sources[1].samples == 12
    assert project.plan("data.blend[1].min_epochs=1.6", OFTEN).data.sources[1].samples == 10
    assert "less often" in refusal(project, FLOOR, OFTEN, "budget.tokens=704")
    assert "less often" in refusal(project, FLOOR, OFTEN, "data.blend[1].share=0.28", "data.blend[0].share=0.72")
    assert "less often" in refusal(project, "data.blend[1].min_epochs=1.77", OFTEN)


def test_a_larger_budget_is_offered_with_the_caps_that_it_needs_raised(project: PencilProject) -> None:
    project.write_dataset("a", tokens=500)  # 31 samples; 768 tokens want 36
    assert "Raise budget.tokens to 768 and max_epochs of a to 2, raise the share" in refusal(project, FLOOR, OFTEN)
    both = ("budget.tokens=768", "data.blend[0].max_epochs=2")
    assert project.plan(FLOOR, OFTEN, *both).data.sources[1].samples == 12


def test_where_no_shares_suffice_it_is_said_once_and_no_share_is_offered(project: PencilProject) -> None:
    project.write_dataset("a", tokens=200)  # 12 samples, and 6 of b, for 40
    text = refusal(project)
    assert text.count("  all      2 sources may give 288 together: no shares suffice\n") == 1
    assert "lower the share" not in text
    assert text.count("  Lower budget.tokens to 256, or raise max_epochs to ") == 2


ONCE = ("data.blend[1].min_epochs=1", "data.blend[1].max_epochs=1")


def test_a_smaller_budget_that_a_floor_refuses_is_no_remedy(project: PencilProject) -> None:
    third = ("data.blend[0].share=0.7", "data.blend[1].share=0.3")
    text = refusal(project, *ONCE, *third)  # 20 samples give 6; 24 give 7
    assert "Lower budget.tokens to 320, lower the share to 0.1500" in text
    shorter = "schedule={warmup_tokens: 64, decay_tokens: 64}"
    assert project.plan(*ONCE, *third, "budget.tokens=320", shorter).data.sources[1].samples == 6
    # Of 8 samples 5 are b's, of 12 they are 7: no budget of whole steps gives 6.
    most = ("data.blend[0].share=0.4", "data.blend[1].share=0.6")
    assert "Lower the share to 0.1500 and raise" in refusal(project, *ONCE, *most)


def test_the_lower_share_has_as_many_digits_as_a_floor_needs() -> None:
    assert share_between(0, 6, 40) == (0, Fraction(3, 20))
    found = share_between(1, 1, 30_001)  # 0.0001 is 3 samples; a 30,001st is 0.0000333322...
    assert found == (Fraction(3_334, 10**8), Fraction(3_333, 10**8))
    assert split_samples([found[1], 1 - found[1]], 30_001) == split_samples([found[0], 1 - found[0]], 30_001)
    assert split_samples([found[1], 1 - found[1]], 30_001)[0] == 1
    assert (written_share(found[1]), written_share(Fraction(3, 20))) == ("0.00003333", "0.1500")


def test_a_floor_above_the_cap_is_refused(project: PencilProject) -> None:
    assert "min_epochs 2 is above the 1 that may be read; raise that, or lower it" in refusal(project, FLOOR)


def test_a_floor_is_no_part_of_the_meaning(project: PencilProject) -> None:
    assert project.plan(OFTEN, "data.blend[1].min_epochs=1").stage_id == project.plan(OFTEN).stage_id
