"""A run that goes on in another layout loses nothing: its losses are those of a run that was never interrupted.

Sums are taken in another order in another layout, so losses agree to 1e-5 and not to the last bit (measured:
at most 5e-7 over five steps of resumed fp32 training). In bf16 the layout alone makes more: against one process an
undisturbed run of tp2 was off by 7.8e-4, of pp2 by 1.2e-4, resumed ones by 8.8e-4 (tp2) and 1.3e-4 (others).
Step 5 is cut and step 6 to 10 are compared: moments, main weights, counters and the data position all show there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.toy_project import Run, ToyProject

LAYOUTS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "one": (None, ()),
    "dp2": (2, ()),
    "tp2": (2, ("parallel.tensor_model_parallel_size=2",)),
    "tp2sp": (2, ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")),
    "pp2": (2, ("parallel.pipeline_model_parallel_size=2",)),
    "pp2dp2": (4, ("parallel.pipeline_model_parallel_size=2",)),
}
DISTRIBUTED = "+distributed"
"""Behind a layout: with the distributed optimizer."""

QUICK = [("tp2", "one"), ("pp2", "tp2"), ("dp2+distributed", "one+distributed")]
SLOW = [
    ("tp2+distributed", "one+distributed"),
    ("pp2+distributed", "tp2+distributed"),
    ("dp2", "one"),
    ("one", "dp2"),
    ("one+distributed", "dp2+distributed"),
    ("tp2sp+distributed", "pp2+distributed"),
    ("one", "tp2sp"),
    ("dp2+distributed", "dp2"),
    ("tp2", "tp2+distributed"),
]
SHARDED = ("parallel.use_distributed_optimizer=true", "checkpoint.optimizer_format=dp_reshardable")
TIED = "model.share_embeddings_and_output_weights=true"


@pytest.fixture(scope="module")
def undisturbed(toy_run: Run) -> dict[str, Run]:
    """Runs of one process that nobody cut, by their overrides; filled as they are asked for."""
    return {"": toy_run}


@pytest.mark.parametrize(
    ("before", "after"), [*QUICK, *(pytest.param(*changes, marks=pytest.mark.slow) for changes in SLOW)]
)
def test_losses_are_those_of_no_interruption(
    toy_project: ToyProject, undisturbed: dict[str, Run], tmp_path: Path, before: str, after: str
) -> None:
    whole = run_whole(toy_project, undisturbed, tmp_path / "whole")
    resumed = cut_and_resume(toy_project, tmp_path, before, after)
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-5)
    assert "goes on at step 5" in resumed.output
    assert "in another layout" in resumed.output
    assert "random states are seeded anew from (seed, step)" in resumed.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "tolerance"), [("tp2", "one+distributed", 2e-3), ("dp2+distributed", "pp2", 3e-4)]
)
def test_main_weights_of_bf16_carry_over(
    toy_project: ToyProject, undisturbed: dict[str, Run], tmp_path: Path, before: str, after: str, tolerance: float
) -> None:
    whole = run_whole(toy_project, undisturbed, tmp_path / "whole", "precision=bf16")
    resumed = cut_and_resume(toy_project, tmp_path, before, after, "precision=bf16")
    assert resumed.losses == pytest.approx(whole.losses, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pp2", "one"),
        ("one", "pp2"),
        ("pp2+distributed", "pp2+distributed"),
        ("pp2+distributed", "one"),
        ("one+distributed", "pp2+distributed"),
        ("pp2dp2+distributed", "pp2dp2+distributed"),
    ],
)
def test_tied_embeddings_carry_over_to_both_ends_of_a_pipeline(
    toy_project: ToyProject, undisturbed: dict[str, Run], tmp_path: Path, before: str, after: str
) -> None:
    whole = run_whole(toy_project, undisturbed, tmp_path / "whole", TIED)
    resumed = cut_and_resume(toy_project, tmp_path, before, after, TIED)
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-5)


@pytest.mark.slow
def test_tied_embeddings_over_a_pipeline_go_on_from_shards_bit_for_bit(toy_project: ToyProject, tmp_path: Path) -> None:
    # With this state the first stage's embedding starts in its bucket behind padding of both kinds.
    keys = (*LAYOUTS["pp2"][1], TIED, "model.mamba_state_dim=14", "precision=bf16", *SHARDED)
    whole = toy_project.run(tmp_path / "whole", *keys, processes=2)
    assert whole.code == 0, whole.output
    rest = toy_project.run(cut_at_step_5(whole, tmp_path / "cut"), *keys, processes=2)
    assert rest.code == 0, rest.output
    assert "goes on at step 5" in rest.output
    assert rest.losses == whole.losses


def test_a_dp_reshardable_checkpoint_goes_on_bit_for_bit_and_in_its_layout_only(
    toy_project: ToyProject, tmp_path: Path
) -> None:
    whole = toy_project.run(tmp_path / "whole", *SHARDED, processes=2)
    assert whole.code == 0, whole.output
    cut_at_step_5(whole, tmp_path / "cut")

    other = toy_project.run(tmp_path / "cut", *SHARDED)
    assert other.code == 2
    assert "step_5: its optimizer state is dp_reshardable, which loads only in the layout" in other.output
    assert "data_parallel_size 2 -> 1" in other.output
    assert "Go on there: 2 processes with --set parallel.tensor_model_parallel_size=1" in other.output
    assert "--set training.max_steps=6" in other.output

    rest = toy_project.run(tmp_path / "cut", *SHARDED, processes=2)
    assert rest.code == 0, rest.output
    assert rest.losses == whole.losses
    assert (rest.stage_folder / "stage.json").read_bytes() == (whole.stage_folder / "stage.json").read_bytes()


@pytest.mark.slow
def test_other_pipeline_cuts_carry_over_whole_state_and_refuse_slices(toy_project: ToyProject, tmp_path: Path) -> None:
    keys = ("parallel.pipeline_model_parallel_size=2", "parallel.use_distributed_optimizer=true")
    before, after = (f'model.hybrid_layer_pattern="{pattern}"' for pattern in ("M-M|*M-", "M-|M*M-"))
    sharded = ("checkpoint.optimizer_format=dp_reshardable", "training.max_steps=6")
    cut = toy_project.run(tmp_path, *keys, before, *sharded, processes=2)
    assert cut.code == 0, cut.output
    checkpoints = cut.stage_folder / "checkpoints"
    shutil.copytree(checkpoints / "step_6", tmp_path / "step_6")
    shutil.rmtree(checkpoints / "step_6")  # the last one is fully reshardable; step 5 was a periodic one
    refused = toy_project.run(tmp_path, *keys, after, processes=2)
    assert "megatron_ext.run: exit code 2" in refused.output
    assert "hybrid_layer_pattern M-M|*M- -> M-|M*M-" in refused.output
    assert "Traceback" not in refused.output

    shutil.copytree(tmp_path / "step_6", checkpoints / "step_6")
    resumed = toy_project.run(tmp_path, *keys, after, processes=2)
    assert resumed.code == 0, resumed.output
    assert "goes on at step 6" in resumed.output
    assert "not bit for bit (hybrid_layer_pattern M-M|*M- -> M-|M*M-)" in resumed.output
    whole = toy_project.run(tmp_path / "whole", *keys, before, processes=2)
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-5)


@pytest.mark.slow
def test_the_last_save_of_a_run_loads_anywhere(toy_project: ToyProject, tmp_path: Path) -> None:
    cut = toy_project.run(tmp_path, *SHARDED, "training.max_steps=7", processes=2)
    assert cut.code == 0, cut.output
    rest = toy_project.run(tmp_path, *SHARDED)
    assert rest.code == 0, rest.output
    assert "data_parallel_size 2 -> 1" in rest.output


def run_whole(project: ToyProject, known: dict[str, Run], run_root: Path, *overrides: str) -> Run:
    key = " ".join(overrides)
    if key not in known:
        known[key] = project.run(run_root, *overrides)
        assert known[key].code == 0, known[key].output
    return known[key]


def cut_and_resume(project: ToyProject, run_root: Path, before: str, after: str, *overrides: str) -> Run:
    """Trains five steps in one layout and the rest in another."""
    cut = run_in(project, run_root, before, *overrides, "training.max_steps=5")
    assert cut.code == 0, cut.output
    resumed = run_in(project, run_root, after, *overrides)
    assert resumed.code == 0, resumed.output
    return resumed


def cut_at_step_5(whole: Run, run_root: Path) -> Path:
    """Copies a finished run without its end: its last save is fully reshardable, that of step 5 a periodic one."""
    shutil.copytree(whole.run_root, run_root)
    stage = Run(0, whole.output, run_root).stage_folder
    (stage / "stage.json").unlink()
    shutil.rmtree(stage / "checkpoints" / "step_10")
    return run_root


def run_in(project: ToyProject, run_root: Path, layout: str, *overrides: str) -> Run:
    processes, keys = LAYOUTS[layout.removesuffix(DISTRIBUTED)]
    is_distributed = str(layout.endswith(DISTRIBUTED)).lower()
    return project.run(
        run_root, *keys, f"parallel.use_distributed_optimizer={is_distributed}", *overrides, processes=processes
    )
