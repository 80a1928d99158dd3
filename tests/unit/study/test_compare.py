"""Two arms, or two stages, side by side: keys, ledgers, curves, and metrics paired by item."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from megatron_ext.evaluate.kept_items import KeptItems, finish_items
from megatron_ext.evaluate.results import Contamination, Metric, TaskResult, write_results
from megatron_ext.study.comparison.content import Comparison
from megatron_ext.study.comparison.curves import curve_pairs
from megatron_ext.study.comparison.make import compare_sides
from megatron_ext.study.comparison.metrics import _differences
from megatron_ext.study.comparison.sides import side_named
from megatron_ext.study.make import make_study_plan
from megatron_ext.study.report.evaluated import read_evaluation
from megatron_ext.training.file_list import weights_fingerprint
from tests.support.evaluation_results import results_of
from tests.support.study_on_disk import FOLDER, write_study
from tests.support.toy_arms import Arms
from tests.support.toy_project import environment

STUDY = ("--study", "study.yaml", "--site", "site.yaml")


def by_folder(arms: Arms) -> Comparison:
    return compare_sides(side_named(str(arms.sums)), side_named(str(arms.words)))


def by_arm(capsys: pytest.CaptureFixture[str], *words: str) -> Comparison:
    assert main(["study", "compare", "more-sums", "more-words", *STUDY, "--json", *words]) == 0
    return Comparison.model_validate_json(capsys.readouterr().out)


def evaluate(
    stage: Path, scores: Sequence[float], *, metric: str = "acc", data_id: str = "questions", keeps_items: bool = True
) -> None:
    """Leaves an evaluation of as many items as there are scores; of a loss each weighs a token."""
    task = TaskResult(
        task="verifiable:questions.jsonl",
        kind="verifiable",
        name="questions",
        headline=metric,
        metrics=(
            Metric(name=metric, value=sum(scores) / len(scores), n=len(scores), is_higher_better=metric == "acc"),
        ),
        items=len(scores),
        data_id=data_id,
        seed=1,
        contamination=Contamination(status="clean"),
    )
    results = results_of(task)
    weights = weights_fingerprint(stage / "checkpoints" / "step_5")
    folder = stage / "evaluations" / "one"
    folder.mkdir(parents=True)
    kept = KeptItems(folder, rank=0, lines=[])
    for number, score in enumerate(scores if keeps_items else ()):
        kept.add("questions", str(number), score=score)
    kept.close()
    finish_items(folder)
    checkpoint = results.checkpoint.model_copy(update={"fingerprint": weights})
    write_results(folder, results.model_copy(update={"checkpoint": checkpoint}))


def test_stages_that_arms_share_are_told_apart_from_those_that_differ(
    arms: Arms, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [(pair.place, pair.first, pair.second, pair.is_shared) for pair in by_arm(capsys).stages] == [
        ("pretrain 1", arms.base.name, arms.base.name, True),
        ("pretrain 2", arms.sums.name, arms.words.name, False),
    ]


def test_arms_differ_in_what_the_study_says(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [(key.place, key.key, key.note) for key in by_arm(capsys).keys if key.part != "placement"]
    assert keys == [("pretrain", "data.blend", "varies")]


def test_stages_differ_in_what_their_plans_say(arms: Arms) -> None:
    keys = {(key.part, key.key): (key.first, key.second) for key in by_folder(arms).keys}
    assert keys == {
        ("meaning", "data.blend"): ("75 % sums + 25 % words", "25 % sums + 75 % words"),
        ("placement", "recipe"): keys["placement", "recipe"],
    }


def test_a_recipe_that_was_edited_since_changes_nothing(arms: Arms) -> None:
    before = by_folder(arms)
    (arms.root / "second-more-words.yaml").write_text("nonsense")
    assert by_folder(arms) == before


def test_ledgers_stand_side_by_side_for_each_stage(arms: Arms) -> None:
    rows = {(row.place, row.source): (row.first_tokens, row.second_tokens) for row in by_folder(arms).ledger}
    assert rows == {
        ("pretrain 1", "sums"): (1_920, 1_920),
        ("pretrain 1", "words"): (640, 640),
        ("pretrain 2", "sums"): (1_920, 640),
        ("pretrain 2", "words"): (640, 1_920),
    }


def test_curves_end_where_the_metrics_end(arms: Arms) -> None:
    last = json.loads((arms.words / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    found = {pair.source: pair.second for pair in by_folder(arms).curves}
    assert {source: line.values[-1] for source, line in found.items() if line} == last
    assert all(line.tokens[-1] == 2_560 for line in found.values() if line)


def test_a_curve_of_replicates_is_their_mean_with_its_ends(arms: Arms) -> None:
    first, second = (side_named(str(stage)).chains[0][-1] for stage in (arms.sums, arms.words))
    alone = {pair.source: pair for pair in curve_pairs("pretrain", [first], [second], [])}
    together = {pair.source: pair.first for pair in curve_pairs("pretrain", [first, second], [second], [])}
    for source, line in together.items():
        one, other = alone[source].first, alone[source].second
        assert line is not None
        assert one is not None
        assert other is not None
        values = sorted((one.values[-1], other.values[-1]))
        assert line.values[-1] == pytest.approx(sum(values) / 2)
        assert [line.low[-1], line.high[-1]] == values


def test_a_difference_of_metrics_is_paired_by_item(arms: Arms) -> None:
    half = [0.0, 1.0] * 20
    evaluate(arms.sums, half)
    evaluate(arms.words, [1.0, 1.0, *half[2:]])  # one more item is right
    (found,) = by_folder(arms).metrics
    assert (found.first, found.second, found.difference) == (0.5, 0.525, pytest.approx(0.025))
    assert found.low is not None
    assert found.high is not None
    assert 0.0 <= found.low <= 0.025 <= found.high < 0.1  # unpaired it would reach beyond 0.2
    assert found.note == "over items alone: one seed each"


def test_a_lower_loss_is_a_negative_difference(arms: Arms) -> None:
    evaluate(arms.sums, [2.0, 3.0], metric="loss")
    evaluate(arms.words, [1.0, 2.5], metric="loss")
    (found,) = by_folder(arms).metrics
    assert (found.difference, found.is_higher_better) == (pytest.approx(-0.75), False)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= -0.75 <= found.high < 0


def test_a_difference_without_items_has_no_interval_and_says_why(arms: Arms) -> None:
    evaluate(arms.sums, [2.0, 3.0], metric="loss", keeps_items=False)
    evaluate(arms.words, [1.0, 2.5], metric="loss", keeps_items=False)
    (found,) = by_folder(arms).metrics
    assert (found.difference, found.low, found.high) == (pytest.approx(-0.75), None, None)
    assert found.note == "no interval: its items were not kept"


def test_other_questions_are_shown_and_not_subtracted(arms: Arms) -> None:
    evaluate(arms.sums, [0.0, 1.0])
    evaluate(arms.words, [1.0, 1.0], data_id="others")
    (found,) = by_folder(arms).metrics
    assert (found.first, found.second, found.difference) == (0.5, 1.0, None)
    assert found.note == "other items or another rule: not compared"


def test_an_evaluation_that_only_one_has_is_said(arms: Arms) -> None:
    evaluate(arms.sums, [0.0, 1.0])
    found = by_folder(arms)
    assert found.metrics == ()
    assert "pretrain 2: evaluation questions: only A has it" in found.notes


def test_other_code_is_said(arms: Arms) -> None:
    assert by_folder(arms).notes == ()
    file = arms.words / "runs.jsonl"
    line = json.loads(file.read_text())
    line["code"]["sha256"] = "b" * 64
    file.write_text(json.dumps(line) + "\n")
    (note,) = by_folder(arms).notes
    assert note.startswith("pretrain 2: other code (sha256 of its files): A ")
    assert note.endswith("; B bbbbbbbbbbbb")


def test_code_that_was_not_recorded_is_said(arms: Arms) -> None:
    (arms.words / "runs.jsonl").unlink()
    assert by_folder(arms).notes == ("pretrain 2: which code trained B was not recorded",)


def test_a_stage_that_has_not_run_stands_as_such(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    for file in sorted(arms.words.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    found = by_arm(capsys)
    assert [pair.second_state for pair in found.stages] == ["finished", "not run"]
    assert all(row.second_tokens == 0 for row in found.ledger if row.place == "pretrain 2")


def test_a_study_json_is_the_study_as_it_was_run(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    now = by_arm(capsys)
    (arms.root / "study.json").write_text(make_study_plan(arms.study, site=arms.root / "site.yaml").to_json())
    arms.study.unlink()
    assert main(["study", "compare", "more-sums", "more-words", "--study", "study.json", "--json"]) == 0
    assert Comparison.model_validate_json(capsys.readouterr().out) == now


def test_a_misspelled_arm_is_refused_with_the_nearest(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "compare", "more-sum", "more-words", *STUDY]) == 2
    assert "more-sum: no such arm in study.yaml; did you mean more-sums?" in capsys.readouterr().err


def test_the_tables_hold_both_sides(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "compare", str(arms.sums), str(arms.words)]) == 0
    text = capsys.readouterr().out
    for words in (
        f"A  {arms.sums}: {arms.base.name} → {arms.sums.name}\n",
        "the same",
        "75 % sums + 25 % words",
        "+1,280",
        "held-out",
    ):
        assert words in text


def test_the_picture_has_both_curves_of_every_source(arms: Arms, tmp_path: Path) -> None:
    file = tmp_path / "curves.svg"
    assert main(["study", "compare", str(arms.sums), str(arms.words), "--json", "-o", str(file)]) == 0
    text = file.read_text()
    assert (text.count('class="line s0"'), text.count('class="line s1"')) == (3, 3)  # the legend, sums, words
    assert "held-out sums" in text


def test_a_comparison_needs_no_torch(arms: Arms) -> None:
    code = f"""
import sys
from megatron_ext.__main__ import main
assert main(["study", "compare", {str(arms.sums)!r}, {str(arms.words)!r}, "-o", "curves.svg"]) == 0
print(sorted({{"torch", "megatron", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_an_interval_over_seeds_says_whose_spread_it_has(tmp_path: Path) -> None:
    run_root = Path(write_study(tmp_path, seeds=2, items=10).run_root)
    folders = [
        [run_root / "stages" / f"sft-shq_on_{base}-{seed}" / "evaluations" / FOLDER for seed in (0, 1)]
        for base in ("base", "lmq")
    ]
    rows = [[one for seed, folder in enumerate(of) if (one := read_evaluation(folder, seed))] for of in folders]
    found = {one.name: one.note for one in _differences("sft 1", "toy", rows)}
    assert found["average"] == "spread of seeds from these two alone; study report takes that of all arms"
