"""A growing batch trains the same in every layout and from wherever it was stopped; so does recomputation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.toy_project import ToyProject

RAMP = (
    "training.micro_batch_size=2",
    "training.ramp_start_batch_size=4",
    "training.ramp_increment=4",
    "training.ramp_tokens=1_024",  # 4 steps of 4 rows, 8 full ones
)


def test_a_ramp_trains_alike_on_two_ranks_and_after_a_stop_inside_it(toy_project: ToyProject, tmp_path: Path) -> None:
    whole = toy_project.run(tmp_path / "whole", *RAMP)
    assert whole.code == 0, whole.output
    samples = [line["consumed_samples"] for line in whole.metrics]
    assert samples == [4, 8, 12, 16, *range(24, 81, 8)]
    assert "WARNING: training.ramp_tokens 1,024: the batch grows from 4 to 8 samples in 4 steps." in whole.output
    overlap = "parallel.overlap_grad_reduce=true"  # behind the last microbatch: of one in a step, then of two
    two = toy_project.run(tmp_path / "two", *RAMP, overlap, processes=2)
    assert two.code == 0, two.output
    assert two.losses == pytest.approx(whole.losses, rel=1e-5)
    assert [line["consumed_samples"] for line in two.metrics] == samples
    toy_project.run(tmp_path / "cut", *RAMP, "training.max_steps=2")
    rest = toy_project.run(tmp_path / "cut", *RAMP)
    assert rest.code == 0, rest.output
    assert rest.losses == whole.losses
    assert (rest.stage_folder / "stage.json").read_bytes() == (whole.stage_folder / "stage.json").read_bytes()


@pytest.mark.slow
def test_full_recompute_under_sequence_parallelism_trains_like_one_process(
    toy_project: ToyProject, tmp_path: Path
) -> None:
    layout = ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")
    alone = toy_project.run(tmp_path / "alone")
    plain = toy_project.run(tmp_path / "plain", *layout, processes=2)
    full = toy_project.run(tmp_path / "full", *layout, "training.recompute=full", processes=2)
    assert (alone.code, plain.code, full.code) == (0, 0, 0), full.output
    assert full.losses == plain.losses
    assert [line["grad_norm"] for line in full.metrics] == [line["grad_norm"] for line in plain.metrics]
    assert full.losses == pytest.approx(alone.losses, rel=1e-5)
    assert full.stage_folder.name == alone.stage_folder.name
