"""What an arm is in one kind of stage, key by key, in a form in which arms can be compared.

A kind may be a chain of stages: the first 600B tokens of pretraining may be a stage that arms share. What has to be
equal is the chain, not where it is cut by stages that go on with everything: budgets are its sums, and a key that
changes on the way counts with the part of the budget that each of its values holds for. A stage that takes the weights
alone begins anew, with its optimizer, its schedule and its cursors; where that is done counts too.

| key             | what is compared |
|-----------------|------------------|
| `budget.tokens` | processed tokens of the chain, as planned |
| `budget.flops`  | operations of training on them |
| `data.blend`    | its blends, or those of its phases, in order, with their tokens where there are several |
| `data.repeated` | sources that are read more than once, with their passes |
| `stages`        | whether an arm that goes on to a later kind has this one |
| `joined`        | of stages that take weights alone from one of the same kind: the budgets between these places |
| `init_from`     | of an arm's first stage: the stage that its weights come from, which the arm does not train |
| `continue`      | of an arm's first stage: the stage that it goes on with, which the arm does not train |
| any other key   | its value in the recipe, of several each with its part of the budget; no key of the placement |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from data_tools.blend_files import BlendFile, SourceFile
from data_tools.quantities import format_count
from megatron_ext.plan.stage_plan import SourcePlan
from megatron_ext.recipe.explain import values_of, yaml_scalar
from megatron_ext.recipe.keys import key_name, role_of
from megatron_ext.recipe.load import LoadedBlend, LoadedRecipe
from megatron_ext.recipe.study_schema import STAGE_KINDS, StageKind
from megatron_ext.study.nodes import PlannedStage

DERIVED_KEYS = ("budget.flops", "data.repeated", "joined", "stages")
"""Keys of this table that no recipe has."""

_COUNTED = {("continue",), ("init_from",), ("budget", "tokens"), ("data", "blend"), ("data", "phases")}


class Fact(NamedTuple):
    """A value of a key.

    Attributes:
        value: Equal where the arms are.
        said: It for people; None of a recipe's values, the usual ones, which are put into words where arms differ.
            These are pairs of a value and the part of the budget that it holds for; of one value that is None.
    """

    value: Any
    said: str | None = None

    @property
    def text(self) -> str:
        """The value for people."""
        if self.said is not None:
            return self.said
        return ", then ".join(
            yaml_scalar(value) + (f" for {format_count(part)}" if part is not None else "")
            for value, part in self.value
        )


def arm_facts(chain: Sequence[PlannedStage]) -> dict[StageKind, dict[str, Fact]]:
    """What an arm is in each kind of stage up to its last one."""
    last = chain[-1].plan.stage
    facts: dict[StageKind, dict[str, Fact]] = {}
    for kind in STAGE_KINDS:
        stages = [stage for stage in chain if stage.plan.stage == kind]
        facts[kind] = _facts(stages) if stages else {"stages": Fact(0, "none")}
        if stages and stages[0] is chain[0]:
            recipe = stages[0].loaded.recipe
            facts[kind]["init_from"] = Fact(recipe.init_from, str(recipe.init_from or "new weights"))
            facts[kind]["continue"] = Fact(recipe.parent, str(recipe.parent or "nothing"))
        if kind == last:
            break
    return facts


def _facts(stages: Sequence[PlannedStage]) -> dict[str, Fact]:
    tokens = sum(stage.plan.batch.total_tokens for stage in stages)
    flops = sum(stage.plan.cost.total_flops for stage in stages if stage.plan.cost is not None)
    repeated = _repeated(stages)
    facts = {
        "stages": Fact(1, "there"),
        "budget.tokens": Fact(tokens, f"{format_count(tokens)} tokens"),
        "budget.flops": Fact(flops, f"{flops:.3e}"),
        "data.blend": _blends(stages),
        "data.repeated": Fact(repeated, ", ".join(f"{name} {passes:g} x" for name, passes in repeated) or "none"),
        "joined": _joined(stages),
    }
    parts: dict[str, list[tuple[Any, int]]] = {}
    for stage in stages:
        for key, value in _recipe_values(stage.loaded):
            parts.setdefault(key, []).append((value, _part(stage)))
    facts |= {key: Fact(_merged(of_key)) for key, of_key in parts.items()}
    examples = sum(stage.loaded.recipe.budget.examples for stage in stages)
    facts["budget.examples"] = Fact(examples, f"{format_count(examples)} conversations")
    return facts


def _part(stage: PlannedStage) -> int:
    """A stage's part of the budget, in what arms hold equal: conversations of an sft stage, tokens of another."""
    is_counted = stage.plan.stage == "sft"
    return stage.loaded.recipe.budget.examples if is_counted else stage.plan.batch.total_tokens


def _merged(parts: Sequence[tuple[Any, int]]) -> tuple[tuple[Any, int | None], ...]:
    """Values in their order, equal ones that follow each other as one; a single value has no part."""
    merged = [(value, sum(part for _, part in group)) for value, group in groupby(parts, lambda one: one[0])]
    return tuple(merged) if len(merged) > 1 else ((merged[0][0], None),)


def _joined(stages: Sequence[PlannedStage]) -> Fact:
    """The budgets between the places where a stage takes weights alone from one of the same kind."""
    runs = [0]
    for stage in stages:
        if runs[-1] and stage.takes == "weights":
            runs.append(0)
        runs[-1] += _part(stage)
    if len(runs) == 1:
        return Fact((), "continue, or one stage")
    return Fact(tuple(runs), f"init_from: {' + '.join(map(format_count, runs))}")


def _recipe_values(loaded: LoadedRecipe) -> Iterator[tuple[str, Any]]:
    """The values of a recipe that are its meaning, and are not counted in another way."""
    for path, value in values_of(loaded.recipe):
        if role_of(path) != "placement" and not any(path[: len(counted)] == counted for counted in _COUNTED):
            yield key_name(path), value


def _blends(stages: Sequence[PlannedStage]) -> Fact:
    """What is read, in order; blends that follow each other and are equal are one."""
    read = [
        (tuple((part.path, entry.share, entry.cursor) for entry, part in pairs), _said(pairs), _part_of(stage, blend))
        for stage in stages
        for blend in stage.loaded.blends
        for pairs in [tuple(zip(blend.entries, blend.parts, strict=True))]
    ]
    merged = [(*key, sum(tokens for *_, tokens in group)) for key, group in groupby(read, lambda one: one[:2])]
    if len(merged) == 1:
        return Fact(merged[0][0], merged[0][1])
    value = tuple((entries, tokens) for entries, _, tokens in merged)
    return Fact(value, "; ".join(f"{format_count(tokens)} {said}" for _, said, tokens in merged))


def _part_of(stage: PlannedStage, blend: LoadedBlend) -> int:
    """A blend's part of the budget: of a pretrain stage its phase."""
    return blend.tokens if stage.plan.stage == "pretrain" else _part(stage)


def _said(pairs: Sequence[tuple[Any, SourceFile | BlendFile]]) -> str:
    return " + ".join(
        f"{100 * entry.share:g} % {_name(part)}{f' ({entry.cursor})' if entry.cursor != 'continue' else ''}"
        for entry, part in pairs
    )


def _name(part: SourceFile | BlendFile) -> str:
    return part.recipe.blend if isinstance(part, BlendFile) else part.recipe.source


def _repeated(stages: Sequence[PlannedStage]) -> tuple[tuple[str, float], ...]:
    """Sources that have been read more than once when the last of the stages ends, and how often."""
    passes: dict[str, float] = {}
    for stage in stages:
        for source in stage.plan.data.sources:
            passes[source.source] = _passes(source, stage)
    return tuple((name, float(f"{number:.3g}")) for name, number in passes.items() if number > 1 + 1e-9)


def _passes(source: SourcePlan, stage: PlannedStage) -> float:
    return source.tokens_before / source.pass_tokens(stage.plan.batch.sequence_length) + source.epochs


def groups_of(facts: Mapping[str, Fact]) -> list[tuple[str, list[str]]]:
    """Arms by value, in the order of arms: the text of each value, and its arms."""
    found: dict[Any, tuple[Fact, list[str]]] = {}
    for arm, fact in facts.items():
        found.setdefault(fact.value, (fact, []))[1].append(arm)
    if len(found) == 1:
        return [("", arms) for _, arms in found.values()]
    return [(fact.text, arms) for fact, arms in found.values()]
