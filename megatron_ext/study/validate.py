"""A file of the recipes folder, of any kind, checked as far as it can be: a line that says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools.quantities import counted
from data_tools.strict_yaml import load_yaml
from megatron_ext.evaluate.suite import is_suite, read_suite
from megatron_ext.plan.datasets import has_sizes
from megatron_ext.plan.rl import has_prompts
from megatron_ext.plan.validate import validate_file
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.locate import locate
from megatron_ext.recipe.study_load import LoadedArm, is_arm_file, load_arm, load_study
from megatron_ext.recipe.study_schema import StageSeeds
from megatron_ext.study.make import make_arm_plan, make_study_plan
from megatron_ext.study.planner import Planner
from megatron_ext.study.questions import missing_questions


def validate(file: Path) -> str:
    """Checks a file and everything that it names.

    What is missing of data and of a suite's files is said; all else is refused as `plan` and `study plan` refuse it.

    Args:
        file: A YAML file.

    Returns:
        `FILE: ok: kind, name, …` in one line.

    Raises:
        UserError: Everything that is wrong.
    """
    if is_suite(file):
        facts = _suite_facts(file)
    elif is_arm_file(file):
        facts = _arm_facts(file)
    elif "study" in load_yaml(locate(file)).data:
        facts = _study_facts(file)
    else:
        return validate_file(file)
    return f"{file}: ok: {facts}"


def _suite_facts(file: Path) -> str:
    suite = read_suite(file)
    missing = missing_questions([str(file)])
    there = f"; not there yet: {'; '.join(line.removeprefix(f'{file}: ') for line in missing)}" if missing else ""
    return f"suite {suite.name}, {counted(len(suite.tasks), 'task')}, {counted(len(suite.aggregates), 'mean')}{there}"


def _arm_facts(file: Path) -> str:
    arm = load_arm(file)
    facts = f"arm {arm.id}, {counted(len(arm.recipes), 'stage')}"
    if _checked_without_data([arm]):
        return f"{facts}, data not built yet"
    stages = make_arm_plan(file, may_be_provisional=True).stages
    return facts + (" (sizes declared, data not built yet)" if stages[-1].data.is_provisional else "")


def _study_facts(file: Path) -> str:
    study = load_study(file)
    facts = f"study {study.recipe.study}, {counted(len(study.arms), 'arm')}"
    if _checked_without_data(study.arms):
        return f"{facts}, data not built yet"
    plan = make_study_plan(file)
    note = " (sizes declared, data not built yet)" if plan.is_provisional else ""
    return f"{facts}, {counted(plan.totals.unique_stages, 'stage')}{note}"


def _checked_without_data(arms: Sequence[LoadedArm]) -> bool:
    """Whether some stage's data is neither there nor declared, so that arms are checked as far as they go without.

    Raises:
        RecipeError: A recipe that is wrong, or names another parent than an arm does.
    """
    planner = Planner(None, None, StageSeeds(), may_be_provisional=True)
    loaded = [one for arm in arms for one in planner.recipes(arm)]
    return not all(map(_has_data, loaded))


def _has_data(loaded: LoadedRecipe) -> bool:
    return has_prompts(loaded) if loaded.recipe.stage == "rl" else has_sizes(loaded)
