"""Wording, charts and tables of text, and the examples in their docstrings."""

from __future__ import annotations

import csv
import doctest
import importlib
import io
import pkgutil
from pathlib import Path

import pytest

import megatron_ext.study.page
import megatron_ext.study.report
from megatron_ext.study.page.answers import answers_of, main_headline
from megatron_ext.study.page.charts import MOST_LETTERS, line_chart, stage_graph
from megatron_ext.study.page.html import page_html
from megatron_ext.study.page.markdown import page_markdown
from megatron_ext.study.page.tidy import COLUMNS, tidy_csv
from megatron_ext.study.report.content import Curve, GraphNode, Report
from megatron_ext.study.report.make import make_report
from megatron_ext.study.report.numbers import Estimate, PaperNumber
from tests.support.study_on_disk import study_plan, write_study

MODULES = sorted(
    module.name
    for room in (megatron_ext.study.page, megatron_ext.study.report)
    for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}.")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return make_report(write_study(tmp_path_factory.mktemp("study"), seeds=3, skip=["rl-grpo-1"]), command="x")


def test_the_five_questions_are_answered(report: Report) -> None:
    found = {answer.question: answer for answer in answers_of(report)}
    assert list(found) == [
        "Which arm is best?",
        "By how much?",
        "Is it noise?",
        "What did each read?",
        "What did it cost?",
    ]
    assert found["Which arm is best?"].short == "lmq-shq"
    assert found["By how much?"].short.endswith(" points")
    assert "over the baseline, base-shq." in found["By how much?"].lines[0]
    assert found["Is it noise?"].short == "No"
    assert (
        found["What did each read?"].lines[0].startswith("base-shq: 3K tokens in pretraining (web 50 %, traces 50 %)")
    )
    assert found["What did it cost?"].short == "5 min of process time"  # who ran it was not recorded


def answer(report: Report, question: str, **changed: object) -> tuple[str, str]:
    """The short answer and all lines, with the headline after fine-tuning changed, the only one."""
    head = next(one for one in report.headlines if one.stage == "sft").model_copy(update=changed)
    only = report.model_copy(update={"headlines": (head,)})
    found = next(one for one in answers_of(only) if one.question == question)
    return found.short, " ".join(found.lines)


@pytest.mark.parametrize(
    ("ratio", "drawn", "short", "said"),
    [
        (0.97, "items and seeds", "No", "the best of 3 in 97 % of 10,000 draws of items and seeds;"),
        (0.62, "items", "In part", "the best of 3 in 62 % of 10,000 draws of items alone;"),
        (None, "nothing", "In part", "the best of 3; how often it would be again cannot be drawn."),
    ],
)
def test_the_best_is_said_with_how_many_there_were_and_what_was_drawn(
    report: Report, ratio: float | None, drawn: str, short: str, said: str
) -> None:
    found, lines = answer(report, "Is it noise?", best_ratio=ratio, drawn=drawn)
    assert (found, said in lines) == (short, True)


def test_what_one_seed_of_an_earlier_stage_cannot_tell_stands_in_the_answer(report: Report) -> None:
    once = tuple(row.model_copy(update={"seeds_by_stage": {"pretrain": 1, "sft": 2}}) for row in report.rows)
    short, lines = answer(report.model_copy(update={"rows": once}), "Is it noise?", best_ratio=0.97)
    assert short == "No, as far as one seed of pretraining can tell"
    assert "Pretraining has 1 seed: what another would change is not in it." in lines


def test_all_kinds_of_stages_with_one_seed_are_named(report: Report) -> None:
    once = tuple(row.model_copy(update={"seeds_by_stage": {"pretrain": 1, "sft": 1, "rl": 2}}) for row in report.rows)
    _, lines = answer(report.model_copy(update={"rows": once}), "Is it noise?", best_ratio=0.97)
    assert "Pretraining and fine-tuning have 1 seed: what another would change is not in it." in lines


def test_equal_arms_have_no_best_and_the_end_of_a_scale_is_said(report: Report) -> None:
    tie = {"tied": ("base-shq", "lmq-shq"), "value": Estimate(value=0.0)}
    short, lines = answer(report, "Which arm is best?", **tie)
    assert short == "None: 2 are equal"
    assert lines.startswith("Equal: base-shq, lmq-shq. That is an end of the scale: this test cannot tell them apart.")
    assert answer(report, "By how much?", **tie)[0] == "Not at all: the best are equal"
    noise, lines = answer(report, "Is it noise?", **tie, baseline="base-shq", second="lmq-shq")
    assert noise == "Nothing to compare"
    assert "draws" not in lines
    assert answer(report, "Is it noise?", **tie, baseline="ldq-shq", second="lmq-shq")[0] != "Nothing to compare"


def one_comparison(report: Report, **changed: object) -> Report:
    """The first finding with its first comparison alone, changed."""
    first = report.findings[0]
    comparison = first.comparisons[0].model_copy(update=changed)
    return report.model_copy(update={"findings": (first.model_copy(update={"comparisons": (comparison,)}),)})


@pytest.mark.parametrize(
    ("drawn", "said"), [("items", "Shows, of items alone."), ("items and seeds", "Shows."), ("seeds", "Shows.")]
)
def test_a_verdict_of_items_alone_says_so(report: Report, drawn: str, said: str) -> None:
    changed = one_comparison(report, drawn=drawn, verdict="shows")
    changed = changed.model_copy(update={"findings": (changed.findings[0].model_copy(update={"verdict": "shows"}),)})
    text = page_markdown(changed)
    assert f"{changed.findings[0].says} {said}" in text
    shown = said.rstrip(".").lower()
    assert f"| {shown} |" in text
    assert f"</span> {shown}</span></header>" in page_html(changed)


@pytest.mark.parametrize(("delta", "is_outside"), [(3.9, True), (4.0, False), (12.0, False), (12.1, True)])
def test_a_number_of_the_paper_outside_of_the_interval_is_marked(
    report: Report, delta: float, is_outside: bool
) -> None:
    paper = PaperNumber(better=None, than=None, delta=delta, source="table 1", remark="")
    changed = one_comparison(report, paper=paper, delta=Estimate(value=0.08, low=0.04, high=0.12), is_share=True)
    for text in (page_markdown(changed), page_html(changed)):
        assert ("outside of this study's interval" in text.replace("&#39;", "'")) == is_outside


def test_a_baseline_without_a_number_is_said_to_have_none_and_no_other(report: Report) -> None:
    said = "The baseline has no number here."
    assert said in answer(report, "By how much?", baseline=None, over_baseline=None)[1]
    assert said not in answer(report, "By how much?")[1]


def test_a_study_that_has_not_run_says_so_and_no_zero(tmp_path: Path) -> None:
    found = [answer.short for answer in answers_of(make_report(study_plan(tmp_path / "runs"), command="x"))]
    assert found == ["Not known yet", "Not known yet", "Not known yet", "Nothing yet", "Nothing yet"]


def test_every_answer_of_a_study_that_has_not_run_says_why(tmp_path: Path) -> None:
    found = answers_of(make_report(study_plan(tmp_path / "runs"), command="x"))
    assert [answer.lines for answer in found[:3]] == [("Nothing has been evaluated.",)] * 3
    assert found[3].lines == ("No stage has begun.",)


def test_of_many_arms_the_baseline_is_read_before_anything_is_evaluated(report: Report) -> None:
    more = tuple(report.readings[1].model_copy(update={"arm": f"arm {number}"}) for number in range(4))
    many = report.model_copy(update={"readings": (*report.readings, *more), "headlines": ()})
    (found,) = (one for one in answers_of(many) if one.question == "What did each read?")
    assert found.short == "2 sources, 8 arms"
    assert [line.partition(":")[0] for line in found.lines] == ["base-shq", "The others stand below"]


def test_markdown_has_the_numbers_and_what_is_missing(report: Report) -> None:
    text = page_markdown(report)
    row = next(row for row in report.rows if row.label == "lmq-shq")
    cell = next(cell for cell in row.cells if cell.metric == "average")
    assert cell.estimate is not None
    assert f"| lmq-shq | 3 of 3 | **{100 * cell.estimate.value:.1f}**" in text
    assert "| rl lmq-shq-grpo, seed 2 of 3 | waiting | nobody has begun it | – | lmq-shq-grpo |" in text
    assert r"| +21.03 points (docs/reference/paper.md\#results) | shows |" in text
    assert "- lmq-shq: lmq-shq, lmq-shq-grpo" in text  # whose row it is


def test_what_the_study_says_of_its_findings_stands_beside_them(report: Report) -> None:
    some = report.model_copy(update={"findings_notes": ("Mind the gap.",)})
    for page in (page_markdown(some), page_html(some)):
        assert "What to know of these numbers" in page
        assert "Mind the gap." in page
    assert "What to know of these numbers" not in page_html(report)


def of_losses(report: Report) -> Report:
    """The report as if its means were held-out losses."""
    loss = {"unit": "nats per token", "metric": "loss", "is_share": False, "is_higher_better": False}
    metrics = tuple(one.model_copy(update=loss) if one.name == "average" else one for one in report.metrics)
    return report.model_copy(update={"metrics": metrics})


def test_a_loss_has_its_unit_and_says_how_its_differences_are_turned(report: Report) -> None:
    losses = of_losses(report)
    text = page_markdown(losses)
    assert "| Arm | Seeds | average, nats per token, lower is better | general, % |" in text
    assert "where lower is better it is turned round, so that + is better everywhere" in text
    assert "turned round" not in page_markdown(report).partition("## Results")[2]
    short, lines = answer(losses, "By how much?")
    assert short.endswith(" nats per token lower")
    assert "0.273 nats per token lower [0.201, 0.338] than the baseline, base-shq." in lines  # no + beside "lower"
    lines_of_csv = list(csv.DictReader(io.StringIO(tidy_csv(losses))))
    units = {
        (line["replicate"], line["unit"], line["better"])
        for line in lines_of_csv
        if (line["arm"], line["stage"], line["metric"]) == ("lmq-shq", "sft", "average")
    }
    loss, share = ("nats per token", "lower"), ("share", "higher")
    assert units == {(name, *loss) for name in ("mean", "0", "1", "2", "delta")} | {("best_ratio", *share)}


@pytest.mark.parametrize(("after_rl", "after_sft", "stage"), [(2, 9, "sft"), (2, 4, "rl"), (1, 2, "sft"), (1, 1, "rl")])
def test_the_best_arm_is_one_of_many(report: Report, after_rl: int, after_sft: int, stage: str) -> None:
    rows = {"rl": after_rl, "sft": after_sft, "pretrain": 1}
    heads = tuple(one.model_copy(update={"evaluated": rows[one.stage]}) for one in report.headlines)
    head = main_headline(report.model_copy(update={"headlines": heads}))
    assert head is not None
    assert head.stage == stage


def test_one_evaluated_arm_is_not_the_best(report: Report) -> None:
    assert answer(report, "Which arm is best?", evaluated=1)[0] == "Not known: only lmq-shq has been evaluated"


def test_with_one_seed_nothing_is_certain_of_seeds(report: Report) -> None:
    metrics = tuple(one.model_copy(update={"seed_degrees": 0}) for one in report.metrics)
    one_seed = report.model_copy(update={"metrics": metrics})
    assert answer(one_seed, "Is it noise?", best_ratio=1.0, drawn="items")[0] == "Not of items; of seeds not known"


def test_steps_that_could_not_be_read_are_said_beside_the_cost(report: Report) -> None:
    costs = report.costs.model_copy(update={"unread": 2})
    lines = answer(report.model_copy(update={"costs": costs}), "What did it cost?")[1]
    assert "More: the steps of 2 stages could not all be read (see Provenance)." in lines


def test_findings_that_a_choice_of_arms_left_out_are_named(report: Report) -> None:
    some = report.model_copy(update={"findings_left_out": ("late-gain",)})
    for page in (page_markdown(some), page_html(some), page_html(some.model_copy(update={"findings": ()}))):
        assert "Left out, for not all their arms are here: late-gain." in page
    assert "Left out" not in page_markdown(report)


def test_markdown_escapes_what_it_did_not_write(report: Report) -> None:
    text = page_markdown(report.model_copy(update={"note": "<img src=x> | [a](b) *c*"}))
    assert r"\<img src=x\> \| \[a\](b) \*c\*" in text


def test_the_tidy_table_has_a_line_for_each_number_of_each_arm(report: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(tidy_csv(report))))
    assert tuple(lines[0]) == COLUMNS

    def of(arm: str, stage: str, metric: str) -> dict[str, dict[str, str]]:
        return {
            line["replicate"]: line
            for line in lines
            if (line["arm"], line["stage"], line["metric"]) == (arm, stage, metric)
        }

    found = of("lmq-shq", "sft", "average")
    assert list(found) == ["mean", "0", "1", "2", "delta", "best_ratio"]
    values = [float(found[name]["value"]) for name in ("0", "1", "2")]
    assert float(found["mean"]["value"]) == pytest.approx(sum(values) / 3)
    assert float(found["mean"]["low"]) < float(found["mean"]["value"]) < float(found["mean"]["high"])
    assert found["mean"]["n"] == "300"
    assert of("lmq-shq-grpo", "sft", "average") == {
        name: line | {"arm": "lmq-shq-grpo"}
        for name, line in found.items()  # it shares the row
    }
    assert of("all", "", "cost:tokens")["all"]["value"] == "26000"


def test_what_has_not_run_has_no_value_in_the_tidy_table(tmp_path: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(tidy_csv(make_report(study_plan(tmp_path / "runs"), command="x")))))
    found = [line for line in lines if line["metric"] == "average"]
    assert {(line["value"], line["state"]) for line in found} == {("", "not run")}


def test_a_text_that_a_spreadsheet_would_run_is_quoted(report: Report) -> None:
    rows = tuple(row.model_copy(update={"arms": ("=1+1",)}) for row in report.rows)
    text = tidy_csv(report.model_copy(update={"rows": rows}))
    assert "'=1+1,sft,average" in text
    assert "\n=1+1" not in text


def curve(*ys: float, label: str = "a") -> Curve:
    return Curve(
        stage="sft",
        quantity="loss",
        label=label,
        node="n",
        arms=("a",),
        stage_ids=("n",),
        tokens=tuple(100.0 * at for at in range(len(ys))),
        mean=ys,
        lines=len(ys),
    )


def test_a_line_goes_through_its_points_between_the_axes() -> None:
    chart = line_chart("loss", [curve(2.0, 1.0, 0.0)], {"a": 0})
    points = [tuple(map(float, point.split())) for point in chart.lines[0].path[1:].split("L")]
    assert [x for x, _ in points] == [chart.left, (chart.left + chart.right) / 2, chart.right]
    assert points[0][1] < points[1][1] < points[2][1]  # down, as y grows downwards
    assert chart.top <= points[0][1]
    assert points[2][1] <= chart.bottom


def test_a_flat_line_and_a_single_point_are_drawn() -> None:
    assert line_chart("lr", [curve(1.0, 1.0)], {"a": 0}).lines[0].path.count("L") == 1
    assert len(line_chart("lr", [curve(0.0)], {"a": 0}).lines[0].dots) == 1


def graph_node(name: str, parent: str | None) -> GraphNode:
    return GraphNode(
        node=name,
        parent=parent,
        stage="sft",
        label=f"{name} {'x' * 40}",
        recipe="r",
        tokens=1,
        seeds=1,
        finished=1,
        arms=("a",),
        evaluations=0,
        evaluated=0,
    )


def test_boxes_of_the_graph_do_not_overlap_and_stand_behind_their_parents() -> None:
    nodes = [graph_node("root", None), graph_node("a", "root"), graph_node("b", "root"), graph_node("c", "a")]
    graph = stage_graph(nodes)
    boxes = {box.node.node: box for box in graph.boxes}
    assert boxes["root"].x < boxes["a"].x == boxes["b"].x < boxes["c"].x
    assert boxes["b"].y - boxes["a"].y >= graph.box_height
    assert boxes["root"].y == (boxes["a"].y + boxes["b"].y) / 2
    assert max(box.y for box in graph.boxes) + graph.box_height <= graph.height
    assert {len(box.short) for box in graph.boxes} == {MOST_LETTERS}
