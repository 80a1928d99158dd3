"""What a site file says of Slurm: keys, what holds for a kind of job, and what it may not ask of sbatch."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import RecipeError
from megatron_ext.recipe.load import load_file
from megatron_ext.recipe.schema import SiteRecipe
from megatron_ext.recipe.site_schema import SlurmRecipe, minutes_of


def site(tmp_path: Path, text: str) -> SiteRecipe:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    found = load_file(file)
    assert isinstance(found, SiteRecipe)
    return found


def test_a_site_without_slurm_has_none(tmp_path: Path) -> None:
    assert site(tmp_path, "run_root: runs\n").slurm is None


def test_a_file_with_nothing_but_slurm_is_a_site(tmp_path: Path) -> None:
    assert site(tmp_path, "slurm: {time: 24:00:00}\n").slurm == SlurmRecipe(time="24:00:00")


def test_a_kind_of_job_takes_what_it_does_not_say_from_all(tmp_path: Path) -> None:
    slurm = site(
        tmp_path,
        "slurm: {partition: gpu, time: 24:00:00, options: [exclusive], nodes: 2, "
        "evaluate: {nodes: null, time: 1:00:00, options: []}}\n",
    ).slurm
    assert slurm is not None
    train, judge = slurm.job("sft"), slurm.job("evaluate")
    assert (train.nodes, train.time, train.partition, train.options) == (2, "24:00:00", "gpu", ("exclusive",))
    assert (judge.nodes, judge.time, judge.partition, judge.options) == (None, "1:00:00", "gpu", ())


@pytest.mark.parametrize(
    ("keys", "ranks"),
    [("", 1), ("gpus_per_node: 8", 8), ("ranks_per_node: 4", 4), ("gpus_per_node: 8, ranks_per_node: 4", 4)],
)
def test_a_rank_for_each_gpu_unless_it_is_said_otherwise(keys: str, ranks: int, tmp_path: Path) -> None:
    slurm = site(tmp_path, f"slurm: {{{keys}}}\n").slurm
    assert slurm is not None
    assert slurm.ranks == ranks


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("array=0-3", "'array=0-3': the script sets array itself; leave it out"),
        ("export=NONE", "'export=NONE': the script sets export itself; leave it out"),
        ("--signal=B:TERM@60", "'--signal=B:TERM@60': the script sets signal itself; leave it out"),
        ("time=1:00:00", "'time=1:00:00': there is a key for it; write time"),
        ("c=4", "'c=4': there is a key for it; write cpus_per_node"),
    ],
)
def test_an_option_that_the_script_or_a_key_sets_is_refused(option: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        site(tmp_path, f"slurm:\n  evaluate:\n    options: [{option}]\n")
    assert f"{tmp_path}/site.yaml:3: slurm.evaluate.options: " in str(error.value)
    assert message in str(error.value)


def test_a_time_limit_in_which_a_run_could_only_save_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"site.yaml:1: slurm: time '5' is not longer than save_s 300 s"):
        site(tmp_path, 'slurm: {time: 24:00:00, rl: {time: "5"}}\n')


def test_environment_variables_are_settings(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="slurm.environment: 'NCCL DEBUG' is no setting; write NAME=VALUE"):
        site(tmp_path, "slurm: {environment: [A=1, NCCL DEBUG]}\n")


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("1:30", 1.5), ("1:30:00", 90), ("2-0", 2880), ("1-1:1", 1501), ("1-1:1:30", 1501.5)],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(time: str, minutes: float) -> None:
    assert minutes_of(time) == minutes


def test_how_long_ranks_wait_stands_in_the_site(tmp_path: Path) -> None:
    timeouts = site(tmp_path, "timeouts: {step_s: 60}\n").timeouts
    assert (timeouts.step_s, timeouts.start_s) == (60, 1800)
    assert (SiteRecipe().timeouts.step_s, SiteRecipe().timeouts.start_s) == (600, 1800)
    with pytest.raises(RecipeError, match=r"site.yaml:1: timeouts: start_s 60 is less than step_s 600"):
        site(tmp_path, "timeouts: {start_s: 60}\n")
