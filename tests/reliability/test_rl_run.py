"""An rl stage from the command line: sampled, resumed exactly, stopped clearly; nothing is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from megatron_ext.datasets.ledger import read_ledger
from megatron_ext.datasets.rollout_file import read_rollouts
from tests.support.lucky_project import lucky_run_root, make_lucky_project
from tests.support.rl_project import prompt_line, write_prompts
from tests.support.toy_project import Run, ToyProject, environment

OPTIONS = (
    *("rl.overlong=soft-penalty", "rl.overlong_penalty_tokens=2", "rl.max_new_tokens=12"),
    *("training.validation_interval_tokens=1056", "checkpoint.interval_tokens=1056"),  # 3 steps of 4 x 2 x 44 tokens
)

TIMES = ("tokens_per_s", "save_s", "sampling_s", "sampled_tokens_per_s", "learning_s", "learned_tokens_per_s")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    return make_lucky_project(tmp_path_factory.mktemp("rl_run"))


def run(project: ToyProject, root: Path, *overrides: str, processes: int | None = None) -> Run:
    return project.run(root, *OPTIONS, *overrides, recipe=project.root / "rl.yaml", processes=processes)


def stage_of(root: Path) -> Path:
    (stage,) = root.glob("stages/rl-*")
    return stage


def metrics_of(root: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (stage_of(root) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(project: ToyProject) -> Path:
    """A stage run from its beginning to its end."""
    root = lucky_run_root(project, "whole")
    done = run(project, root)
    assert done.code == 0, done.output
    return root


def test_every_step_learns_and_what_it_sampled_is_kept(whole: Path) -> None:
    lines = metrics_of(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["grad_norm"] > 0 for line in lines)
    assert all(line["mismatch_mean"] < 1e-5 for line in lines)
    assert lines[0]["kl_reference"] == pytest.approx(0, abs=1e-9)
    assert lines[-1]["kl_reference"] > 0
    for line in lines:
        _, records = read_rollouts(stage_of(whole), line["step"])
        assert len(records) == 4 * 2
        assert sum(record["reward"] for record in records) / 8 == line["reward"]


def test_every_reply_is_judged_by_the_answer_of_its_own_prompt(whole: Path) -> None:
    records = [record for step in range(1, 7) for record in read_rollouts(stage_of(whole), step)[1]]
    for record in records:
        assert record["parts"]["accuracy"] == record["text"].startswith(f"\\boxed{{{record['truth']}}}"), record
    assert {(record["truth"], record["parts"]["accuracy"]) for record in records} == {
        *(("3", 0.0), ("3", 1.0), ("4", 0.0), ("4", 1.0))
    }


def test_penalties_of_length_are_kept_and_advantages_follow_from_reward_and_penalty(whole: Path) -> None:
    seen = set()
    for line in metrics_of(whole):
        _, records = read_rollouts(stage_of(whole), line["step"])
        for record in records:  # the last 2 of 12 tokens cost, half a point each
            assert record["penalty"] == max(0, record["tokens"] - 10) / -2
            seen.add(record["penalty"])
        assert line["length_penalty"] == pytest.approx(sum(record["penalty"] for record in records) / 8)
        for first, second in zip(records[::2], records[1::2], strict=True):
            values = [one["reward"] + one["penalty"] for one in (first, second)]
            expected = [(value - sum(values) / 2) / (stdev(values) + 1e-6) for value in values]
            assert [first["advantage"], second["advantage"]] == pytest.approx(expected)
    assert len(seen) > 1


def test_another_temperature_is_that_of_the_sampler_and_of_every_log_probability(project: ToyProject) -> None:
    root = lucky_run_root(project, "cooler")
    done = run(project, root, "rl.temperature=0.5", "rl.mismatch_threshold=1e-5", "training.max_steps=2")
    assert done.code == 0, done.output
    first, second = metrics_of(root)
    assert first["kl_reference"] == pytest.approx(0, abs=1e-9)
    assert first["ratio_mean"] == second["ratio_mean"] == pytest.approx(1, abs=1e-5)


def test_the_ledger_counts_prompts_and_sampled_and_trained_tokens(whole: Path) -> None:
    state = json.loads((stage_of(whole) / "stage.json").read_text())["state"]
    rows = {row.source: row for row in read_ledger(stage_of(whole)) if row.phase == 1}
    sampled = sum(record["tokens"] for step in range(1, 7) for record in read_rollouts(stage_of(whole), step)[1])
    assert (rows["sums"].samples, rows["sums"].documents_first, rows["sums"].documents_repeated) == (24, 24, 0)
    assert rows["sums"].sampled == state["sampled_tokens"] == sampled
    assert rows["sums"].read - rows["sums"].masked == state["trained_tokens"] == sampled
    assert rows["sums"].read + rows["padding"].read == state["consumed_tokens"]


def test_three_steps_and_three_resumed_are_six_to_the_bit(project: ToyProject, whole: Path) -> None:
    root = lucky_run_root(project, "resumed")
    assert run(project, root, "training.max_steps=3").code == 0
    assert run(project, root).code == 0
    assert metrics_of(root) == metrics_of(whole)
    for step in range(1, 7):
        assert read_rollouts(stage_of(root), step) == read_rollouts(stage_of(whole), step)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(project: ToyProject, whole: Path) -> None:
    root = lucky_run_root(project, "killed")
    command = project.command(root, *OPTIONS, recipe=project.root / "rl.yaml")
    with subprocess.Popen(command, cwd=project.root, env=environment(), stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 400
            while not list(root.glob("stages/rl-*/rollouts/step_5.jsonl.zst")):
                assert process.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline, "it never came to step 5"
                time.sleep(0.02)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert run(project, root).code == 0
    assert metrics_of(root) == metrics_of(whole)


def test_several_updates_of_one_step_read_its_completions_in_mini_batches(project: ToyProject) -> None:
    root = lucky_run_root(project, "mini")
    done = run(project, root, "rl.mini_batch_prompts=2", "rl.epochs=2", "training.max_steps=2")
    assert done.code == 0, done.output
    lines = metrics_of(root)
    assert [line["updates"] for line in lines] == [4, 4]
    assert lines[0]["ratio_mean"] != 1.0  # later updates are off policy
    sampled = sum(record["tokens"] for record in read_rollouts(stage_of(root), 1)[1])
    assert lines[0]["trained_tokens"] == 2 * sampled


def test_a_budget_of_tokens_ends_the_stage_behind_the_step_that_reaches_it(project: ToyProject, whole: Path) -> None:
    after_two = metrics_of(whole)[1]["sampled_tokens"]
    root = lucky_run_root(project, "spent")
    done = run(project, root, f"budget.tokens={after_two}")
    assert done.code == 0, done.output
    assert [line["step"] for line in metrics_of(root)] == [1, 2]
    assert (stage_of(root) / "stage.json").is_file()


def test_disagreement_of_sampler_and_trainer_stops_before_anything_is_learned(project: ToyProject) -> None:
    root = lucky_run_root(project, "mismatch")
    done = run(project, root, "rl.mismatch_threshold=1e-12")
    assert done.code == 5
    assert "step 1: sampler and trainer disagree" in done.output
    assert not (stage_of(root) / "metrics.jsonl").read_text()
    assert read_rollouts(stage_of(root), None)[0] == 1


def test_weights_that_give_no_finite_logits_stop_the_stage(project: ToyProject) -> None:
    root = lucky_run_root(project, "diverged")
    done = run(project, root, "optimizer={lr: 1e30, min_lr: 1e30, clip_grad: 0}")
    assert done.code == 5
    assert "finite" in done.output
    assert "Traceback" not in done.output


def test_without_a_reference_none_is_read(project: ToyProject) -> None:
    root = lucky_run_root(project, "no_kl")
    assert run(project, root, "rl.kl.coefficient=0", "training.max_steps=1").code == 0
    (line,) = metrics_of(root)
    assert line["kl_reference"] == 0


LONG = prompt_line(1, prompt=[{"role": "user", "content": "one " * 200}])
WORDY = prompt_line(1, reward_model={"style": "rule", "ground_truth": "about seven"})


@pytest.mark.parametrize(
    ("lines", "overrides", "code", "message"),
    [
        ([], (), 3, "no prompt is left to practise on"),
        ([LONG], (), 3, "1 prompts of source 'sums' have more than max_prompt_tokens 32; first: "),
        ([WORDY], (), 3, "ground truth: 'about seven' is nothing that the scorer number can read"),
        (None, ("rl.max_new_tokens=65",), 2, "= 97 do not fit in training.sequence_length 96"),
        (None, ("rl.max_epochs=0.9",), 2, "6 steps of 4 prompts read the 24 of the set 1 times"),
    ],
    ids=["empty-set", "prompt-longer-than-its-limit", "no-verifiable-answer", "longer-than-the-row", "too-many-passes"],
)
def test_what_cannot_be_sampled_ends_before_a_device_is_touched_and_writes_nothing(
    project: ToyProject, tmp_path: Path, lines: Any, overrides: tuple[str, ...], code: int, message: str
) -> None:
    if lines is not None:
        write_prompts(project.root / "data" / "other.jsonl", lines)
        overrides = ("rl.prompts[0].file=other.jsonl",)
    done = run(project, tmp_path / "runs", *overrides)
    assert done.code == code, done.output
    assert message in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "runs").exists()


def test_an_update_whose_completions_are_all_masked_says_so_and_keeps_them(project: ToyProject) -> None:
    root = lucky_run_root(project, "masked")
    done = run(project, root, "rl.max_new_tokens=1", "rl.overlong=mask", "rl.overlong_penalty_tokens=0")
    assert done.code == 5, done.output
    said = re.search(
        r"step (\d): all completions of an update were cut at rl\.max_new_tokens 1, and rl\.overlong mask leaves "
        "nothing to learn from; raise that, or write keep",
        done.output,
    )
    assert said is not None, done.output
    _, records = read_rollouts(stage_of(root), int(said[1]))
    assert [record["finish"] for record in records] == ["length"] * 8
    assert len(metrics_of(root)) == int(said[1]) - 1


def test_a_cap_on_importance_weights_reaches_the_loss(project: ToyProject, whole: Path) -> None:
    root = lucky_run_root(project, "capped")
    done = run(project, root, "rl.importance_cap=1", "training.max_steps=1")
    assert done.code == 0, done.output
    (line,) = metrics_of(root)
    assert 0 < line["importance_truncated_fraction"] < 1  # rounding puts some weights above 1
    assert metrics_of(whole)[0]["importance_truncated_fraction"] == 0
    assert line["loss"] == pytest.approx(metrics_of(whole)[0]["loss"], abs=1e-5)


def test_a_stage_goes_on_with_other_ranks_than_it_began_with(project: ToyProject, whole: Path) -> None:
    root = lucky_run_root(project, "moved")
    assert run(project, root, "training.max_steps=3").code == 0
    done = run(project, root, processes=2)
    assert done.code == 0, done.output
    for step in range(1, 7):
        alone, moved = (read_rollouts(stage_of(one), step)[1] for one in (whole, root))
        assert [record["text"] for record in moved] == [record["text"] for record in alone]
    for one, two in zip(metrics_of(whole), metrics_of(root), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)  # sums of ranks are taken in another order


@pytest.mark.parametrize("processes", [None, 2])
def test_a_step_that_cannot_begin_loses_nothing_of_those_before_it(
    project: ToyProject, whole: Path, processes: int | None
) -> None:
    root = lucky_run_root(project, f"full_{processes}")
    assert run(project, root, "training.max_steps=2", processes=processes).code == 0
    full = stage_of(root) / "rollouts" / "step_5.jsonl.zst.partial"
    full.symlink_to("/dev/full")
    done = run(project, root, processes=processes)
    assert "step_5.jsonl.zst: cannot be written: No space left on device" in done.output
    assert "Traceback" not in done.output
    assert "step 4: saved, to go on from" in done.output
    assert done.code == (4 if processes is None else 1)  # torchrun's own code for any failure
    assert [line["step"] for line in metrics_of(root)] == [1, 2, 3, 4]
    full.unlink(missing_ok=True)
    assert run(project, root, processes=processes).code == 0
    if processes is None:
        assert metrics_of(root)[2:] == metrics_of(whole)[2:]  # the cut looked at held-out prompts behind step 2
    for step in range(1, 7):
        alone, mended = (read_rollouts(stage_of(one), step)[1] for one in (whole, root))
        assert [record["text"] for record in mended] == [record["text"] for record in alone]


def test_the_pass_rate_of_the_weights_that_it_began_with_is_kept(whole: Path) -> None:
    before = json.loads((stage_of(whole) / "before.json").read_text())["validation"]
    assert before["sums"] * 8 in range(1, 8)  # of 8 prompts
    assert 0 < before["sums_low"] < before["sums"] < before["sums_high"] < 1


@pytest.fixture(scope="module")
def dynamic(project: ToyProject) -> Path:
    """Two steps with dynamic sampling."""
    root = lucky_run_root(project, "dynamic")
    done = run(project, root, "rl.dynamic_sampling=true", "training.max_steps=2", "rl.max_epochs=4")
    assert done.code == 0, done.output
    return root


def test_dynamic_sampling_learns_from_the_groups_that_differ_and_counts_all_that_it_sampled(dynamic: Path) -> None:
    replaced = learned_tokens = sampled_tokens = 0
    for line in metrics_of(dynamic):
        records = read_rollouts(stage_of(dynamic), line["step"])[1]
        groups: dict[int, list[dict[str, Any]]] = {}
        for record in records:
            groups.setdefault(record["place"], []).append(record)
        learned = [group for group in groups.values() if group[0]["is_trained"]]
        differ = [place for place, group in groups.items() if group[0]["reward"] != group[1]["reward"]]
        assert len(learned) == 4
        assert sum(group[0]["place"] in differ for group in learned) == min(4, len(differ)) > 0
        assert line["replaced_groups"] == len(groups) - 4
        learned_tokens += sum(record["tokens"] for group in learned for record in group)
        sampled_tokens += sum(record["tokens"] for record in records)
        assert (line["trained_tokens"], line["sampled_tokens"]) == (learned_tokens, sampled_tokens)
        replaced += line["replaced_groups"]
    assert replaced > 0


def test_the_ledger_counts_replaced_prompts_as_drawn_and_sampled_and_not_as_learned_from(dynamic: Path) -> None:
    records = [record for step in (1, 2) for record in read_rollouts(stage_of(dynamic), step)[1]]
    learned = sum(record["tokens"] for record in records if record["is_trained"])
    row = next(row for row in read_ledger(stage_of(dynamic)) if (row.phase, row.source) == (1, "sums"))
    assert row.samples == len({record["place"] for record in records}) > 8
    assert row.sampled == sum(record["tokens"] for record in records) > learned
    assert row.read - row.masked == learned


def test_a_scorer_that_raises_keeps_what_was_sampled_and_may_be_counted_in_the_same_stage(
    project: ToyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    from megatron_ext.__main__ import main

    task = {"family": "palindrome_generation", "metadata": {"letters": ["a", 3]}}  # of which no order is known
    truth = {"style": "rule", "ground_truth": "ab"}  # is no palindrome: the scorer does not come to the letters
    lines = [prompt_line(n, meta_data={"scorer": "reasoning-gym", "task": task}, reward_model=truth) for n in range(32)]
    write_prompts(project.root / "data" / "broken.jsonl", lines)
    root = lucky_run_root(project, "broken")
    options = ("rl.prompts[0].file=broken.jsonl", "training.max_steps=1")
    done = run(project, root, *options, processes=2)
    assert done.code != 0
    assert (
        "raised TypeError: '<' not supported between instances of 'int' and 'str', of the reply '\\\\boxed{"
        in done.output
    )
    kept = stage_of(root) / "rollouts" / "failed_step_1.jsonl.zst"
    assert f"Sampled by then: {kept}" in done.output
    step, records = read_rollouts(stage_of(root), None)
    assert step == 1
    assert [(record["outcome"], record["is_trained"]) for record in records] == [("failed", False)] * 8  # held out
    assert all(record["text"].startswith(r"\boxed{") for record in records)
    assert main(["rollouts", str(stage_of(root)), "--best", "1"]) == 0
    assert "scorer failed: prompt sum-" in capsys.readouterr().out

    done = run(project, root, *options, "rl.rewards.on_error=count")
    assert done.code == 0, done.output
    assert len(read_rollouts(stage_of(root), 1)[1]) == 4 * 2
    assert not kept.exists()


def test_refills_leave_the_planned_steps_their_prompts(project: ToyProject) -> None:
    root = lucky_run_root(project, "scarce")
    done = run(project, root, "rl.dynamic_sampling=true", "rl.max_epochs=1.25")
    assert done.code == 0, done.output
    lines = metrics_of(root)
    assert len(lines) == 6
    assert sum(line["replaced_groups"] for line in lines) == 6  # of 30 permitted prompts


def test_a_disk_that_is_full_when_completions_are_kept_ends_all_ranks_alike(project: ToyProject) -> None:
    root = lucky_run_root(project, "full")
    assert run(project, root, "training.max_steps=1").code == 0
    (stage_of(root) / "rollouts" / "step_2.jsonl.zst.partial").symlink_to("/dev/full")
    done = run(project, root, processes=2)
    assert done.code != 0
    assert "step_2.jsonl.zst: cannot be written: No space left on device" in done.output
    assert "Traceback" not in done.output
    assert len(metrics_of(root)) == 1


def test_trace_names_the_verb_that_shows_completions(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_ext.__main__ import main

    assert main(["trace", str(stage_of(whole)), "--step", "1"]) == 3
    assert "megatron-ext rollouts" in capsys.readouterr().err
    assert main(["rollouts", str(stage_of(whole)), "--step", "2", "--best", "1"]) == 0
    assert "step 2" in capsys.readouterr().out


@pytest.mark.parametrize("sizes", ["{}", "{tensor_model_parallel_size: 2, sequence_parallel: true}"])
def test_two_ranks_sample_and_learn_what_one_does(project: ToyProject, whole: Path, sizes: str) -> None:
    root = lucky_run_root(project, f"two_ranks_{len(sizes)}")
    done = run(project, root, "training.max_steps=3", f"parallel={sizes}", processes=2)
    assert done.code == 0, done.output
    for step in (1, 2, 3):
        alone, shared = (read_rollouts(stage_of(one), step)[1] for one in (whole, root))
        assert [record["text"] for record in shared] == [record["text"] for record in alone]
    for one, two in zip(metrics_of(whole), metrics_of(root), strict=False):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)  # sums of ranks are taken in another order
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
