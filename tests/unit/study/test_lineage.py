"""From weights back to sources: what is on the disk is named, what is not is said."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ext.__main__ import main
from megatron_ext.runtime.code_version import code_version
from megatron_ext.study.lineage.read import read_lineage
from megatron_ext.study.lineage.record import Check, Lineage
from megatron_ext.study.lineage.verify import verified
from megatron_ext.training.file_list import weights_fingerprint
from tests.support.evaluation_results import leave_evaluation
from tests.support.toy_arms import Arms
from tests.support.toy_project import environment


def damaged(lineage: Lineage) -> tuple[Check, ...]:
    """The checks that failed."""
    return tuple(check for check in lineage.checks or () if check.damage)


def said(lineage: Lineage, *words: str) -> list[str]:
    """The sentences on what is not known in which all the words stand."""
    return [sentence for sentence in lineage.unknown if all(word in sentence for word in words)]


def test_the_chain_stands_oldest_first_with_the_ids_that_its_meanings_make(arms: Arms) -> None:
    lineage = read_lineage(arms.words)
    assert [(stage.stage_id, stage.gives) for stage in lineage.stages] == [
        (arms.base.name, "everything"),
        (arms.words.name, None),
    ]
    for stage in lineage.stages:
        assert stage.meaning_sha256 is not None
        assert stage.meaning_sha256.startswith(stage.stage_id.removeprefix("pretrain-"))
        assert stage.is_id_of_meaning


def test_each_stage_says_what_it_read_itself(arms: Arms) -> None:
    lineage = read_lineage(arms.words)
    read = [{source.source: source.read_tokens for source in stage.sources} for stage in lineage.stages]
    assert read == [{"sums": 1_920, "words": 640}, {"sums": 640, "words": 1_920}]


def test_a_source_names_the_files_that_it_was_made_of(arms: Arms) -> None:
    (dataset,) = read_lineage(arms.base).last.sources[0].datasets
    raw = Path("sums.jsonl").read_bytes()
    (file,) = dataset.inputs
    assert (file.bytes, file.sha256, file.documents) == (len(raw), hashlib.sha256(raw).hexdigest(), 400)


def test_a_source_names_the_program_that_made_it(arms: Arms) -> None:
    (dataset,) = read_lineage(arms.base).last.sources[0].datasets
    engine = json.loads(Path("data/sums.manifest.json").read_text())["engine"]
    assert dataset.engine == f"{engine['name']} {engine['version']}"


def test_a_run_names_its_code_and_the_weights_that_it_took_up(arms: Arms) -> None:
    (run,) = read_lineage(arms.words).last.runs
    assert run.code.sha256 == code_version().sha256
    assert run.begins_from is not None
    assert run.begins_from.weights == weights_fingerprint(arms.base / "checkpoints/step_5")


def test_terms_that_no_file_states_are_not_known(arms: Arms) -> None:
    assert said(read_lineage(arms.base), "source sums", "not stated: licence, revision, available_at")


def test_nothing_is_told_of_data_that_were_replaced(arms: Arms) -> None:
    arms.retokenize("words")
    lineage = read_lineage(arms.words)
    states = {source.source: (source.state, len(source.datasets)) for source in lineage.last.sources}
    assert states == {"sums": ("as read", 1), "words": ("replaced", 0)}
    assert said(lineage, "source words: replaced since", "how its content was made is not known here")


def test_data_that_are_gone_are_said_to_be(arms: Arms) -> None:
    for file in Path("data").glob("words.[bimo]*"):
        file.unlink()
    assert said(read_lineage(arms.words), "source words: no dataset at")


def test_a_stage_behind_whose_folder_is_gone_is_known_by_name_alone(arms: Arms) -> None:
    shutil.rmtree(arms.base)
    lineage = read_lineage(arms.words)
    base = lineage.stages[0]
    assert (base.stage_id, base.stage, base.folder, base.sources) == (arms.base.name, "pretrain", None, ())
    assert (base.planned_steps, base.planned_tokens) == (5, 2_560)
    assert said(lineage, arms.base.name, "only what later stages say of it is known")


def test_a_stage_without_a_record_of_its_runs_says_so(arms: Arms) -> None:
    (arms.base / "runs.jsonl").unlink()
    lineage = read_lineage(arms.words)
    assert lineage.stages[0].runs == ()
    assert len(said(lineage, arms.base.name, "code, packages, hardware and date were not recorded")) == 1


def test_a_line_that_a_kill_has_cut_is_said_and_not_passed_over(arms: Arms) -> None:
    with (arms.base / "runs.jsonl").open("a") as file:
        file.write('{"started": "2026-')
    lineage = read_lineage(arms.base)
    assert len(lineage.last.runs) == 1
    assert said(lineage, "runs.jsonl:2: cannot be read")


def test_weights_that_were_trained_again_since_are_found(arms: Arms) -> None:
    file = arms.words / "runs.jsonl"
    line = json.loads(file.read_text())
    line["begins_from"]["weights"] = "0" * 64
    file.write_text(json.dumps(line) + "\n")
    assert said(read_lineage(arms.words), "began with weights 000000000000", "it was trained again since")


def test_a_checkpoint_that_was_copied_away_knows_its_own_plan_and_no_runs(arms: Arms, tmp_path: Path) -> None:
    away = shutil.copytree(arms.base / "checkpoints/step_5", tmp_path / "away" / "step_5")
    lineage = read_lineage(away)
    assert (lineage.last.stage_id, lineage.last.folder, lineage.last.is_finished) == (arms.base.name, None, None)
    assert said(lineage, "lies in no stage's folder")


def test_evaluations_are_named_and_those_of_other_weights_told_apart(arms: Arms) -> None:
    leave_evaluation(arms.words, fingerprint=weights_fingerprint(arms.words / "checkpoints/step_5"))
    leave_evaluation(arms.base, fingerprint="of other weights")
    first, last = (stage.evaluations[0] for stage in read_lineage(arms.words).stages)
    assert (first.is_of_this_checkpoint, last.is_of_this_checkpoint) == (False, True)
    (task,) = last.tasks
    assert (task.name, task.value, task.low, task.high, task.n) == ("questions", 0.25, 0.19, 0.32, 200)
    assert task.contamination == "clean"


def test_what_is_as_it_was_written_is_verified(arms: Arms) -> None:
    lineage = verified(read_lineage(arms.words))
    assert lineage.checks is not None
    assert damaged(lineage) == ()
    kinds = [check.what for check in lineage.checks]
    assert {kind: kinds.count(kind) for kind in kinds} == {"id": 2, "checkpoint": 2, "dataset": 2, "input": 2}


@pytest.mark.parametrize(("name", "what"), [("data/words.bin", "dataset"), ("sums.jsonl", "input")])
def test_a_changed_byte_is_found(arms: Arms, name: str, what: str) -> None:
    content = bytearray(Path(name).read_bytes())
    content[100] ^= 1
    Path(name).write_bytes(content)
    assert [check.what for check in damaged(verified(read_lineage(arms.words)))] == [what]


def test_a_changed_file_of_the_parents_checkpoint_is_found(arms: Arms) -> None:
    file = next((arms.base / "checkpoints/step_5").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (check,) = damaged(verified(read_lineage(arms.words)))
    assert (check.what, check.damage) == (
        "checkpoint",
        (f"{file.name}: of the right size, but its content changed since it was written (sha256)",),
    )


def test_a_meaning_that_does_not_make_its_id_is_found(arms: Arms) -> None:
    file = arms.base / "checkpoints/step_5/plan.json"
    plan = json.loads(file.read_text())
    plan["meaning"]["seed"] = 99
    file.write_text(json.dumps(plan))
    assert {check.what for check in damaged(verified(read_lineage(arms.base)))} == {"id", "checkpoint"}


def test_inputs_that_are_gone_are_not_known_and_no_damage(arms: Arms) -> None:
    Path("sums.jsonl").unlink()
    lineage = verified(read_lineage(arms.base))
    assert damaged(lineage) == ()
    assert said(lineage, "sums.jsonl: gone or elsewhere")


def test_the_command_ends_with_3_where_something_changed(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    arms.retokenize("words")
    assert main(["lineage", str(arms.words), "--verify"]) == 3
    assert "DAMAGED source" in capsys.readouterr().out


def test_the_tree_holds_the_chain_the_sources_and_what_is_not_known(
    arms: Arms, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lineage", str(arms.words)]) == 0
    text = capsys.readouterr().out
    for words in (
        f"└── {arms.words.name}  ",
        f"└── goes on from {arms.base.name}  ",
        "source words (general)",
        "1,920 tokens read",
        "from step 0: code ",
        "Not known:\n",
    ):
        assert words in text
    assert "sampled" not in text  # only a stage of rewards samples


def test_what_was_verified_is_counted_by_kind(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", str(arms.words), "--verify"]) == 0
    assert "Verified: 2 ids, 2 checkpoints, 2 datasets, 2 inputs\n" in capsys.readouterr().out


def test_json_alone_is_printed_and_reads_back(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", str(arms.words), "--json"]) == 0
    assert Lineage.model_validate_json(capsys.readouterr().out) == read_lineage(arms.words)


def test_an_arm_of_a_study_is_its_last_checkpoint(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--study", "study.yaml", "--site", "site.yaml", "--json"]
    assert main(["lineage", "more-words#0", *words]) == 0
    assert Lineage.model_validate_json(capsys.readouterr().out).last.stage_id == arms.words.name


def test_an_arm_that_is_not_trained_to_its_end_is_refused(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    (arms.words / "stage.json").unlink()
    assert main(["lineage", "more-words", "--study", "study.yaml", "--site", "site.yaml"]) == 3
    text = capsys.readouterr().err
    assert f"{arms.words.name} is not trained" in text
    assert f"finished: {Path('runs').absolute()}/stages/{arms.base.name}. Train it" in text


def test_a_replicate_that_is_not_there_is_refused(arms: Arms, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", "more-words#1", "--study", "study.yaml", "--site", "site.yaml"]) == 2
    assert "more-words has 1 replicate: write #0, or the arm alone" in capsys.readouterr().err


def test_a_lineage_is_read_without_torch(arms: Arms) -> None:
    code = f"""
import sys
from megatron_ext.__main__ import main
assert main(["lineage", {str(arms.words)!r}, "--verify", "--graph", "one.svg", "--ro-crate", "crate"]) == 0
print(sorted({{"torch", "megatron", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_the_picture_is_svg_that_names_every_stage_and_source(arms: Arms, tmp_path: Path) -> None:
    assert main(["lineage", str(arms.words), "--json", "--graph", str(tmp_path / "one.svg")]) == 0
    text = (tmp_path / "one.svg").read_text()
    assert all(name in text for name in (arms.base.name, arms.words.name, "sums  640", "words  1,920", "everything"))
