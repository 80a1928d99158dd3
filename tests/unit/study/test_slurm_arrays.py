"""Seeds of one node share an array, parents' arrays come first, and a job's name says what it runs."""

from __future__ import annotations

from pathlib import Path

from data_tools.slurm import QueuedTask
from megatron_ext.study.launcher import Task
from megatron_ext.study.slurm_arrays import NAME_CHARACTERS, arrays_of, by_node, job_name
from megatron_ext.study.study_plan import EvaluationNode, StudyPlan
from megatron_ext.study.tasks import make_task, nodes_of
from tests.support.stand_in_study import stand_in_plan


def seeded_plan(run_root: Path, replicates: dict[str, int], *, seeds: int = 2) -> StudyPlan:
    """a -> b with two seeds, written seed by seed as a plan has them, and a suite on b."""
    plan = stand_in_plan(run_root, {"a": None, "b": "a"})
    stages = []
    for seed in range(seeds):
        for stage, letter in zip(plan.stages, "ab", strict=True):
            if seed >= replicates.get(letter, seeds):
                continue
            parent = f"pretrain-a{seed % replicates.get('a', seeds)}" if letter == "b" else None
            stages.append(
                stage.model_copy(
                    update={"stage_id": f"pretrain-{letter}{seed}", "replicate": seed, "parent": parent, "seed": seed}
                )
            )
    judged = [stage for stage in stages if stage.recipe == "b.yaml"]
    evaluations = tuple(
        EvaluationNode(
            node_id=f"{one.stage_id}/held-1",
            stage_id=one.stage_id,
            suite="held.yaml",
            suite_name="held",
            folder="held-1",
        )
        for one in judged
    )
    return plan.model_copy(update={"stages": tuple(stages), "evaluations": evaluations})


def tasks_of(plan: StudyPlan, run_root: Path) -> list[Task]:
    return [make_task(plan, node, run_root) for node in nodes_of(plan)]


def names(plan: StudyPlan, tasks: list[Task]) -> list[dict[int, str]]:
    return [{index: task.name for index, task in array.items()} for array in arrays_of(tasks, plan)]


def test_seeds_of_a_stage_and_of_its_evaluation_share_an_array_behind_that_of_their_parents(tmp_path: Path) -> None:
    plan = seeded_plan(tmp_path, {})
    assert names(plan, tasks_of(plan, tmp_path)) == [
        {0: "pretrain-a0", 1: "pretrain-a1"},
        {0: "pretrain-b0", 1: "pretrain-b1"},
        {0: "pretrain-b0.held-1", 1: "pretrain-b1.held-1"},
    ]


def test_an_array_comes_behind_all_that_any_of_its_tasks_waits_for(tmp_path: Path) -> None:
    """Of a0 nothing is left to do; b0 stands before a1 in the plan, and b1 waits for a1."""
    plan = seeded_plan(tmp_path, {})
    left = [task for task in tasks_of(plan, tmp_path) if task.name != "pretrain-a0"]
    assert names(plan, left)[:2] == [{1: "pretrain-a1"}, {0: "pretrain-b0", 1: "pretrain-b1"}]


def test_seeds_that_share_a_parent_are_one_array_too(tmp_path: Path) -> None:
    plan = seeded_plan(tmp_path, {"a": 1})
    assert names(plan, tasks_of(plan, tmp_path))[:2] == [{0: "pretrain-a0"}, {0: "pretrain-b0", 1: "pretrain-b1"}]


def test_one_recipe_twice_in_an_arm_is_two_arrays(tmp_path: Path) -> None:
    plan = seeded_plan(tmp_path, {})
    same = tuple(stage.model_copy(update={"recipe": "round.yaml", "arms": ("b",)}) for stage in plan.stages)
    plan = plan.model_copy(update={"stages": same})
    assert names(plan, tasks_of(plan, tmp_path))[:2] == [
        {0: "pretrain-a0", 1: "pretrain-a1"},
        {0: "pretrain-b0", 1: "pretrain-b1"},
    ]


def test_many_seeds_are_several_arrays_whose_names_are_short_enough(tmp_path: Path) -> None:
    plan = seeded_plan(tmp_path, {}, seeds=40)
    arrays = arrays_of(tasks_of(plan, tmp_path), plan)
    assert sum(len(array) for array in arrays) == 3 * 40
    assert len(arrays) > 3
    assert max(len(job_name(array, tmp_path)) for array in arrays) <= NAME_CHARACTERS


def test_a_queue_is_read_back_into_nodes_by_the_names_of_its_jobs(tmp_path: Path) -> None:
    plan = seeded_plan(tmp_path, {})
    array = arrays_of(tasks_of(plan, tmp_path), plan)[2]
    here, elsewhere = job_name(array, tmp_path), job_name(array, tmp_path / "other")
    assert here.startswith("pretrain-b0.held-1:0,pretrain-b1.held-1:1@")
    one, other, foreign, unnamed = (
        QueuedTask(job, index, "PENDING", "me", "Priority", "", name)
        for job, index, name in ((7, 1, here), (7, 0, here), (8, 0, elsewhere), (9, None, "shell"))
    )
    found = by_node([one, other, foreign, unnamed], tmp_path)
    assert found == {"pretrain-b1.held-1": one, "pretrain-b0.held-1": other}
    assert [task.id for task in found.values()] == ["7_1", "7_0"]


def test_a_run_root_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    plan = seeded_plan(tmp_path, {})
    array = arrays_of(tasks_of(plan, tmp_path), plan)[0]
    (tmp_path / "a").mkdir()
    assert job_name(array, tmp_path) == job_name(array, tmp_path / "a" / "..")
