"""The stage whose weights another one begins with: what the two must share, and what reading its data again takes.

Everything else begins anew: optimizer, data cursors, learning rate. Budget, batch, sequence length, optimizer,
precision and seed may be others.
"""

from __future__ import annotations

import math
from pathlib import Path

from data_tools.errors import DataError
from data_tools.strict_yaml import KeyPath
from data_tools.tokenizer import fingerprint, special_tokens
from megatron_ext.plan.lineage import CONTINUE, said
from megatron_ext.plan.new_tokens import tokens_to_add
from megatron_ext.plan.stage_plan import SEMANTICS_VERSION, DataPlan, ParentPlan, StagePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems

INIT_FROM: KeyPath = ("init_from",)
_ONLY_NEW_WEIGHTS = {"init_method_std"}
_PATH = {"padded_vocab_size": "vocab_size"}
"""The recipe's key where the meaning has another."""

_SHOWN = 5


def check_weights(loaded: LoadedRecipe, plan: StagePlan, giver: StagePlan, *, run_root: Path) -> None:
    """Refuses weights of another model, or of a model that reads with another tokenizer.

    Args:
        loaded: What was asked.
        plan: The stage; its `new_tokens` may have made the vocabulary larger.
        giver: The stage that gives the weights.
        run_root: Folder whose stages keep their tokenizers.

    Raises:
        RecipeError: With each key that differs, both values, and what to write.
    """
    problems = Problems()
    there, here = giver.meaning["model"], plan.meaning["model"]
    difference = _other_tokenizer(plan.data, giver.data) if plan.new_tokens is None else ""
    added = tokens_to_add(plan.data, giver, run_root=run_root) if difference else {}
    for key in sorted((there.keys() | here.keys()) - _ONLY_NEW_WEIGHTS):
        theirs, mine = there.get(key), here.get(key)
        is_resized = key == "padded_vocab_size" and plan.new_tokens is not None and theirs < mine
        if theirs != mine and not is_resized:
            path: KeyPath = ("model", _PATH.get(key, key))
            what = "" if path[1] == key else f"{key} "
            grows = key == "padded_vocab_size" and added and theirs < mine
            remedy = "keep it for the added tokens, with --set resize_vocabulary=true" if grows else "write the same"
            message = f"{what}{said(mine)}, and {said(theirs)} in {giver.stage_id}, which gives the weights; {remedy}"
            problems.add(loaded.origin(path), path, message)
    if difference:
        path = ("data", "tokenizer")
        remedy = _add_them(added) or "or weights that were trained with this one"
        message = f"{difference}\n  Take the tokenizer of {giver.stage_id}, {remedy}."
        problems.add(loaded.origin(path), path, message)
    problems.raise_recipe_error()


def _other_tokenizer(mine: DataPlan, theirs: DataPlan) -> str:
    """How two tokenizers differ; "" where they do not, or one is not built yet, to be compared when it is."""
    prints = mine.tokenizer_fingerprint, theirs.tokenizer_fingerprint
    if "" in prints or prints[0] == prints[1]:
        return ""
    lines = [f"{mine.tokenizer} is {prints[0][:12]}…, and the weights read with {theirs.tokenizer}, {prints[1][:12]}…"]
    here, there = (_special_tokens(data) for data in (mine, theirs))
    differing = [token for token in sorted(here | there) if here.get(token) != there.get(token)]
    lines += [
        f"  special token {token!r}: id {here.get(token, 'none')} here, {there.get(token, 'none')} there"
        for token in differing[:_SHOWN]
    ]
    if len(differing) > _SHOWN:
        lines.append(f"  … and {len(differing) - _SHOWN} special tokens more")
    if mine.eod_id != theirs.eod_id:
        lines.append(f"  end of a document: id {mine.eod_id} here, {theirs.eod_id} there")
    return "\n".join(lines)


def _add_them(added: dict[str, int]) -> str:
    """How the tokens that a tokenizer has more than the weights' get rows; "" where there are none."""
    if not added:
        return ""
    shown = ", ".join(f"{token!r} (id {number})" for token, number in list(added.items())[:_SHOWN])
    more = f" and {len(added) - _SHOWN} more" if len(added) > _SHOWN else ""
    return f"or give {shown}{more} new rows: add --set resize_vocabulary=true"


def _special_tokens(data: DataPlan) -> dict[str, int]:
    """Special tokens of a tokenizer; none where its files are not those of the plan any more."""
    try:
        if fingerprint(data.tokenizer) == data.tokenizer_fingerprint:
            return special_tokens(data.tokenizer)
    except DataError:
        pass
    return {}


def other_numerics(giver: StagePlan) -> list[str]:
    """A sentence where the code that trained the weights has other numerics than this; their use is no error."""
    then = giver.meaning["semantics_version"]
    if then == SEMANTICS_VERSION:
        return []
    return [
        f"init_from: {giver.stage_id} was trained with semantics_version {then} of the numerics, and this code has "
        f"{SEMANTICS_VERSION}: its weights are taken as they are."
    ]


def check_permission(loaded: LoadedRecipe, plan: StagePlan, behind: ParentPlan) -> None:
    """Refuses to read again what was read before a stage began anew with weights, unless `max_epochs` allows it.

    Such a stage begins every source at its first document, so whatever is read of one of theirs may be read twice.

    Raises:
        RecipeError: With each such source.
    """
    problems = Problems()
    read = {source.data_id: source.passes_before_anew for source in behind.sources}
    for source in plan.data.sources:
        before = read.get(source.data_id, 0)
        since = source.tokens_before / source.pass_tokens(plan.batch.sequence_length) + source.epochs
        if before and (source.max_epochs <= 1 or source.max_epochs < before + since):
            key = INIT_FROM if plan.init_from is not None else CONTINUE
            problems.add(
                loaded.origin(key),
                key,
                f"source {source.source!r}: {before:.3g} passes of it were read before the weights were taken and it "
                f"was begun anew; with this stage {before + since:.3g} are read, and max_epochs {source.max_epochs:g} "
                f"forbids to read again; raise it to {max(2, math.ceil(before + since))}",
            )
    problems.raise_recipe_error()
