"""Whether a study's suites can judge its stages, told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_tools.strict_yaml import KeyPath
from megatron_ext.evaluate.foreseen import ForeseenStage, never_judged, not_there
from megatron_ext.evaluate.suite import read_suite
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.study_load import LoadedStudy
from megatron_ext.recipe.study_schema import STAGE_KINDS
from megatron_ext.study.nodes import PlannedStage


def require_judgeable(study: LoadedStudy, chains: Mapping[str, Sequence[PlannedStage]]) -> None:
    """Refuses suites that cannot judge a stage, whatever it learns.

    Args:
        study: Names the suites.
        chains: The stages of each arm, of one replicate.

    Raises:
        RecipeError: With the first arm of each task that cannot be judged.
    """
    problems = Problems()
    by_id = {stage.plan.stage_id: ForeseenStage(stage.plan) for chain in chains.values() for stage in chain}
    for kind in STAGE_KINDS:
        judged = {arm: [by_id[one] for one in ids] for arm, chain in chains.items() if (ids := _up_to(chain, kind))}
        for index, file in enumerate(study.suites[kind]):
            at: KeyPath = ("evaluate", kind, index)
            for request in read_suite(Path(file)).requests():
                whys = {arm: why for arm, found in judged.items() if (why := never_judged(request, found))}
                for why in dict.fromkeys(whys.values()):
                    arm = next(arm for arm in whys if whys[arm] == why)
                    message = f"{file}: {request.task}: {kind} of arm {arm}: {why}"
                    problems.add(study.origin(at), at, message)
    problems.raise_recipe_error()


def _up_to(chain: Sequence[PlannedStage], kind: str) -> list[str]:
    """The stages of an arm up to its last one of a kind; [] where it has none."""
    last = max((place for place, stage in enumerate(chain) if stage.plan.stage == kind), default=-1)
    return [stage.plan.stage_id for stage in chain[: last + 1]]


def missing_questions(suites: Iterable[str]) -> list[str]:
    """What some suites ask for and is not there: a sentence for each reason, with its tasks."""
    found: dict[tuple[str, str], list[str]] = {}
    for suite in dict.fromkeys(suites):
        for request in read_suite(Path(suite)).requests():
            if why := not_there(request):
                found.setdefault((suite, why), []).append(request.task)
    return [f"{suite}: {', '.join(tasks)}: {why}" for (suite, why), tasks in found.items()]
