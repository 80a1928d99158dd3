"""The results of the miniature that are kept: of the study as it stands, whole, and the ones that its page states.

Tables of the page are made again from the JSON here, line by line, and so is every sentence that states a number of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from megatron_ext.recipe.study_load import load_study
from megatron_ext.study.page.wording import duration, interval, printed, signed, value
from megatron_ext.study.report.content import Report
from megatron_ext.study.report.numbers import Cell, Comparison, Estimate, Row

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "recipes" / "miniature"
PAGE = (ROOT / "docs" / "explanation" / "miniature.md").read_text(encoding="utf-8")
AFTER = {"pretrain": "pretraining", "sft": "SFT", "rl": "RL"}
TESTS = ("general", "math", "code", "new")
SEEDS = (0, 1)


@cache
def results() -> Report:
    return Report.model_validate_json((FOLDER / "results" / "cpu.json").read_bytes())


def cell(stage: str, arm: str, metric: str) -> Cell:
    """The number of an arm after a kind of stage."""
    [row] = [row for row in results().rows if row.stage == stage and arm in row.arms]
    return cell_of(row, metric)


def cell_of(row: Row, metric: str) -> Cell:
    [found] = [cell for cell in row.cells if cell.metric == metric]
    return found


def by_seed(stage: str, arms: Sequence[str], metric: str) -> list[float]:
    """The mean over arms, of each seed."""
    cells = [cell(stage, arm, metric) for arm in arms]
    return [mean(one.replicates[seed].value for one in cells) for seed in SEEDS]


def difference_by_seed(one: Comparison) -> list[float]:
    sides = [by_seed(one.stage, arms, one.metric) for arms in (one.better, one.than)]
    return [better - than for better, than in zip(*sides, strict=True)]


def percent(numbers: Iterable[float]) -> str:
    return ", ".join(value(number, is_share=True) for number in numbers)


def points(numbers: Iterable[float]) -> str:
    return ", ".join(signed(number, is_share=True) for number in numbers)


def difference(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{points([found.value])} {interval(found, is_share=True, is_difference=True)}"


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def table_behind(text: str) -> list[str]:
    """The lines of the first table behind a text of the page, without its heading."""
    _, found, rest = PAGE.partition(text)
    assert found, f"the page does not say: {text}"
    lines = rest[rest.index("\n|") + 1 :].split("\n\n")[0].splitlines()
    return [line.replace("|  |", "| |").replace("|  |", "| |") for line in lines[2:]]


def comparisons() -> list[tuple[str, Comparison]]:
    return [(finding.name, one) for finding in results().findings for one in finding.comparisons]


def test_they_are_of_the_arms_and_the_seeds_of_the_study() -> None:
    study = load_study(FOLDER / "study.yaml")
    assert {arm for row in results().rows for arm in row.arms} == {arm.id for arm in study.arms}
    seeds = study.recipe.seeds.model_dump()
    assert {(row.stage, row.seeds_run) for row in results().rows} == set(seeds.items())
    assert not results().missing


def test_they_answer_the_comparisons_of_the_study() -> None:
    asked = [
        (finding.name, part.better, part.than, part.stage, part.metric, part.expect, part.within)
        for finding in load_study(FOLDER / "study.yaml").recipe.findings
        for part in finding.comparisons
    ]
    answered = [
        (name, one.better, one.than, one.stage, one.metric, one.expect, one.within) for name, one in comparisons()
    ]
    assert answered == asked


def test_they_name_no_path_of_the_machine_that_made_them() -> None:
    def texts(part: Any) -> Iterable[str]:
        if isinstance(part, str):
            yield part
        for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from texts(one)

    whole = json.loads((FOLDER / "results" / "cpu.json").read_bytes())
    assert [text for text in texts(whole) if text.startswith("/")] == []


def test_the_table_of_findings_says_what_they_say() -> None:
    rows = []
    for finding in results().findings:
        for one in finding.comparisons:
            assert one.paper is not None
            equal = f", equal within {one.within:g}" if one.within is not None else ""
            rows.append(
                [
                    f"{finding.name} **{finding.verdict}**" if one is finding.comparisons[0] else "",
                    ", ".join(one.better),
                    ", ".join(one.than),
                    f"{one.metric}, after {AFTER[one.stage]}{equal}",
                    difference(one.delta),
                    points(difference_by_seed(one)),
                    printed(one.paper.delta, is_difference=True),
                    one.verdict,
                ]
            )
    assert table_behind("## Results") == [line.replace("|  |", "| |") for line in table(rows)]


@pytest.mark.parametrize("stage", list(AFTER))
def test_the_table_after_each_kind_of_stage_says_what_they_say(stage: str) -> None:
    rows = []
    for row in (row for row in results().rows if row.stage == stage):
        average = cell_of(row, "average")
        estimates = [cell_of(row, task).estimate for task in TESTS]
        rows.append(
            [
                row.label,
                f"{percent([average.estimate.value])} {interval(average.estimate, is_share=True)}",
                percent(one.value for one in average.replicates),
                difference(average.delta),
                *(percent([one.value]) for one in estimates),
            ]
        )
    assert table_behind(f"\nAfter {AFTER[stage]}:\n") == [line.replace("|  |", "| |") for line in table(rows)]


def test_the_table_of_intervals_has_half_of_each() -> None:
    rows = []
    for name, one in comparisons():
        assert one.paper is not None
        assert one.delta is not None
        assert one.delta.low is not None
        assert one.delta.high is not None
        half = 100 * (one.delta.high - one.delta.low) / 2
        groups = f"{', '.join(one.better)} over {', '.join(one.than)}"
        paper = f"{abs(one.paper.delta):.1f}"
        rows.append([name, f"{one.metric}, after {AFTER[one.stage]}", groups, f"{half:.1f}", paper])
    assert table_behind("These are the halves") == table(rows)


def test_the_table_of_seeds_has_their_spread() -> None:
    lines = table_behind("Without the noise of questions the interval")
    for line, stage in zip(lines, AFTER, strict=True):
        arms = len([row for row in results().rows if row.stage == stage])
        [info] = [one for one in results().metrics if (one.stage, one.name) == (stage, "average")]
        assert info.paired_deviation is not None
        assert line.startswith(f"| {AFTER[stage]} | {arms} | ")
        assert f"| {100 * info.paired_deviation:.1f} points |" in line


ON_SHQ, ON_LDQ = (tuple(f"{base}-{sft}" for base in ("shq", "ldq", "lmq")) for sft in ("shq", "ldq"))


RL = (("sft", "base-shq"), ("rl", "base-shq-grpo"), ("sft", "lmq-shq"), ("rl", "lmq-shq-grpo"))


def whole(numbers: Iterable[float]) -> list[str]:
    return [f"{abs(100 * number):.0f}" for number in numbers]


def ends(stage: str, arms: Sequence[str], metric: str) -> str:
    """The least and the most of some arms, as the page says it."""
    numbers = [mean(by_seed(stage, [arm], metric)) for arm in arms]
    return " and ".join(whole([min(numbers), max(numbers)]))


def kind_of_sft(metric: str) -> list[float]:
    """SFT on shq over SFT on ldq, behind the same three bases, of each seed."""
    return [a - b for a, b in zip(by_seed("sft", ON_SHQ, metric), by_seed("sft", ON_LDQ, metric), strict=True)]


def averages_of_all_arms(stage: str) -> str:
    arms = [row.arms[0] for row in results().rows if row.stage == stage]
    return " and ".join(value(number, is_share=True) for number in by_seed(stage, arms, "average"))


def sentences() -> Iterable[str]:
    """What the page says in words of these numbers."""
    (math_1, math_2), (code_1, code_2) = (whole(kind_of_sft(task)) for task in ("math", "code"))
    yield f"math and code are {math_1} and {code_1} points better in seed 1234 and {math_2} and {code_2} in seed 1235"
    before, behind = ends("pretrain", ("base-shq", *ON_SHQ), "general"), ends("sft", ON_SHQ, "general")
    yield f"falls from between {before} % to between {behind} %"
    yield f"After SFT on ldq it is {ends('sft', ON_LDQ, 'general').replace('and', 'to')} %"
    yield f"in both seeds, by {' and by '.join(whole(kind_of_sft('average')))} points"
    [catch_up] = [one for name, one in comparisons() if name == "no-catch-up"]
    yield f"in both seeds, by {' and by '.join(whole(difference_by_seed(catch_up)))} points"
    latent = [number for name, one in comparisons() if name == "latent-effect" for number in difference_by_seed(one)]
    yield f"differ by no more than {100 * max(map(abs, latent)):.1f} points"
    falls = [percent(by_seed(stage, [arm], "average")).split(", ") for stage, arm in RL]
    (base_1, base_2), (base_rl_1, base_rl_2), (lmq_1, lmq_2), (lmq_rl_1, lmq_rl_2) = falls
    yield f"in seed 1234 ({base_1} to {base_rl_1}, {lmq_1} to {lmq_rl_1})"
    yield f"in seed 1235 ({base_2} to {base_rl_2}, {lmq_2} to {lmq_rl_2})"
    new = whole([mean(by_seed("sft", ["lmq-shq"], "new")), mean(by_seed("rl", ["lmq-shq-grpo"], "new"))])
    yield f"`new` rises from {' to '.join(new)} % behind `lmq`"
    [one, other] = averages_of_all_arms("pretrain").split(" and ")
    yield f"the four arms of seed 1234 have {one} % in the mean and those of 1235 {other} %"
    yield f"after SFT {averages_of_all_arms('sft')} %."
    changes = []
    for base in ("shq", "ldq", "lmq"):
        sides = [by_seed("sft", [f"{base}-{sft}"], "average") for sft in ("shq", "ldq")]
        changes.append((sides[0][0] - sides[1][0]) - (sides[0][1] - sides[1][1]))
    assert len({number > 0 for number in changes}) == 1, "the page says: in one direction"
    yield "changed by {}, {} and {} points from one seed to the other".format(*whole(changes))


def test_every_number_in_a_sentence_is_one_of_them() -> None:
    assert [text for text in sentences() if text not in PAGE] == []


def test_the_table_of_overlaps_has_every_result_that_is_not_clean() -> None:
    rows = []
    for one in results().contamination:
        assert set(one.statuses.values()) <= {"clean", "overlaps"}
        assert {label for label, status in one.statuses.items() if status == "overlaps"} == set(one.items)
        [questions] = {
            cell_of(row, one.task).items for row in results().rows if row.stage == one.stage
        }  # every arm has answered all of them
        for items in sorted(set(one.items.values())):
            labels = [label for label, number in one.items.items() if number == items]
            rows.append([AFTER[one.stage], one.task, str(questions), str(items), ", ".join(labels)])
    assert table_behind("### Was a test trained on?") == table(rows)


def test_the_page_says_what_it_took() -> None:
    costs = results().costs
    training = [f"{AFTER[one.label]} {duration(one.seconds)}" for one in costs.kinds]
    tokens = [f"{one.tokens / 1e6:.1f}M {AFTER[one.label]}" for one in costs.kinds]
    assert f"| {', '.join(training)} |" in PAGE
    assert f"| time of evaluations | {duration(costs.total.evaluation_seconds)}," in PAGE
    assert f"| tokens | {', '.join(tokens)} |" in PAGE
