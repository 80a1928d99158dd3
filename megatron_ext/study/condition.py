"""The control condition: arms are equal in everything but what the study says that they vary.

Arms are compared kind by kind, as far as each goes (`facts.py`). A difference is permitted where `varies` names its key
or a section above it, or where the arms that `confounds` names for it leave at most one value among the others. What is
not permitted is refused with a list, and so is a permission that nothing needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from data_tools.errors import RecipeError
from data_tools.strict_yaml import KeyPath, nearest
from megatron_ext.recipe.keys import key_name, leaf_keys, role_of
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import Recipe
from megatron_ext.recipe.study_load import LoadedStudy
from megatron_ext.recipe.study_schema import STAGE_KINDS, ConfoundRecipe
from megatron_ext.study.facts import DERIVED_KEYS, Fact, arm_facts, groups_of
from megatron_ext.study.nodes import PlannedStage
from megatron_ext.study.study_plan import ArmDifference, ArmsWithValue


def arm_differences(study: LoadedStudy, chains: Mapping[str, Sequence[PlannedStage]]) -> tuple[ArmDifference, ...]:
    """What arms differ in, once for each key and kind of stage.

    Args:
        study: Says what may differ.
        chains: The stages of each arm, of its first replicate.

    Raises:
        RecipeError: A key that no stage has; all differences that nobody permits; permissions that nothing needs.
    """
    _check_keys(study)
    found = _differences(chains)
    varies, confounds = study.recipe.varies, study.recipe.confounds
    refused = [one for one in found if not _permits(one, varies, confounds)]
    if refused:
        raise RecipeError(_refusal(study, refused))
    if len(chains) > 1:  # of one arm nothing can differ yet
        _check_need(study, found)
    return tuple(_explained(one, varies, confounds) for one in found)


def between(differences: Sequence[ArmDifference], arms: Sequence[str]) -> tuple[ArmDifference, ...]:
    """What of the differences is there between some of the arms."""
    found = []
    for one in differences:
        groups = [
            group.model_copy(update={"arms": tuple(arm for arm in group.arms if arm in arms)}) for group in one.values
        ]
        groups = [group for group in groups if group.arms]
        if len(groups) > 1:
            found.append(one.model_copy(update={"values": tuple(groups)}))
    return tuple(found)


def _differences(chains: Mapping[str, Sequence[PlannedStage]]) -> list[ArmDifference]:
    """All of them, permitted or not."""
    facts = {arm: arm_facts(chain) for arm, chain in chains.items()}
    found = []
    for kind in STAGE_KINDS:
        by_key: dict[str, dict[str, Fact]] = {}
        for arm, of_arm in facts.items():
            for key, fact in of_arm.get(kind, {}).items():
                by_key.setdefault(key, {})[arm] = fact
        for key, values in by_key.items():
            groups = groups_of(values)
            if len(groups) > 1:
                shown = tuple(ArmsWithValue(value=text, arms=tuple(arms)) for text, arms in groups)
                found.append(ArmDifference(key=key, stage=kind, values=shown, permitted_by="varies"))
    return found


def _covers(key: str, difference: str) -> bool:
    """Whether a key is that of the difference, or a section above it."""
    return difference == key or difference.startswith((f"{key}.", f"{key}["))


def _concerns(confound: ConfoundRecipe, difference: ArmDifference) -> bool:
    return confound.stage in (None, difference.stage) and _covers(confound.key, difference.key)


def _permits(difference: ArmDifference, varies: Sequence[str], confounds: Sequence[ConfoundRecipe]) -> bool:
    if any(_covers(key, difference.key) for key in varies):
        return True
    patterns = [pattern for one in confounds if _concerns(one, difference) for pattern in one.arms]
    left = [
        group
        for group in difference.values
        if any(not any(fnmatchcase(arm, pattern) for pattern in patterns) for arm in group.arms)
    ]
    return len(left) <= 1


def _explained(difference: ArmDifference, varies: Sequence[str], confounds: Sequence[ConfoundRecipe]) -> ArmDifference:
    """The difference with who permits it, and why."""
    if any(_covers(key, difference.key) for key in varies):
        return difference
    why = " ".join(one.why for one in confounds if _concerns(one, difference))
    return difference.model_copy(update={"permitted_by": "confounds", "why": why})


def _refusal(study: LoadedStudy, refused: Sequence[ArmDifference]) -> str:
    """All that differs and may not, with what to write."""
    count = f"{len(refused)} difference{'s' if len(refused) > 1 else ''}"
    lines = [f"{study.origin(('varies',))}: varies: {count} between arms that the study does not name:"]
    for one in refused:
        lines.append(f"  {one.stage} {one.key}")
        width = max(len(group.value) for group in one.values)
        lines += [f"    {group.value:<{width}}  {', '.join(group.arms)}" for group in one.values]
    odd = sorted(refused[0].values, key=lambda group: len(group.arms))[:-1]
    arms = ", ".join(arm for group in odd for arm in group.arms)
    lines.append("  Make them equal, add the keys to varies, or say in confounds why they differ, such as")
    lines.append(f"    - {{key: {refused[0].key}, stage: {refused[0].stage}, arms: [{arms}], why: …}}")
    return "\n".join(lines)


def _check_need(study: LoadedStudy, found: Sequence[ArmDifference]) -> None:
    """Refuses what permits nothing: it would hide a difference that comes later."""
    problems = Problems()
    varies, confounds = study.recipe.varies, study.recipe.confounds
    for index, key in enumerate(varies):
        if not any(_covers(key, one.key) for one in found):
            at: KeyPath = ("varies", index)
            problems.add(study.origin(at), at, f"{key}: no arms differ in it; remove it")
    for index, confound in enumerate(confounds):
        for pattern in confound.arms:
            fewer = [*confounds[:index], *_without(confound, pattern), *confounds[index + 1 :]]
            if all(_permits(one, varies, fewer) for one in found):
                at = ("confounds", index)
                message = f"{confound.key}: nothing needs the permission for {pattern}; remove it"
                problems.add(study.origin(at), at, message)
    problems.raise_recipe_error()


def _without(confound: ConfoundRecipe, pattern: str) -> list[ConfoundRecipe]:
    rest = tuple(one for one in confound.arms if one != pattern)
    return [confound.model_copy(update={"arms": rest})] if rest else []


def _check_keys(study: LoadedStudy) -> None:
    """Refuses keys that no recipe has, and keys of the placement, in which arms may differ anyway."""
    problems = Problems()
    leaves = [leaf for leaf in leaf_keys(Recipe) if role_of(leaf) != "placement"]
    known = {key_name(leaf[:length]) for leaf in leaves for length in range(1, len(leaf) + 1)} | {*DERIVED_KEYS}
    named: list[tuple[KeyPath, str]] = [(("varies", index), key) for index, key in enumerate(study.recipe.varies)]
    named += [(("confounds", index, "key"), one.key) for index, one in enumerate(study.recipe.confounds)]
    for at, key in named:
        if key in known:
            continue
        near = nearest(key, known)
        message = f"{key}: no key that arms are compared in; {f'did you mean {near}?' if near is not None else ''}"
        if any(key_name(leaf) == key for leaf in leaf_keys(Recipe)):
            message = f"{key}: says where and how a stage runs, and arms may differ in it; remove it"
        problems.add(study.origin(at), at, message)
    problems.raise_recipe_error()
