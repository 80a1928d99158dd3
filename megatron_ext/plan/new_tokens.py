"""The tokens that a stage has more than the one whose weights it begins with: `resize_vocabulary`.

Every token that the weights know keeps its id and its rows of embedding and output layer. Each new row is the mean of
the rows of all tokens that they know (`models/new_rows.py`); rows of ids in between that no token has, which are as
they were drawn or decayed, do not count. A mean moves no other token's probability by much, whatever
the number of rows; a row drawn at random does, because its logit may be the largest of all
(Source: Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021).
"""

from __future__ import annotations

from pathlib import Path

from data_tools.errors import DataError
from data_tools.strict_yaml import KeyPath
from data_tools.tokenizer import fingerprint
from data_tools.tokenizer_extension import tokens_added, unused_ids
from megatron_ext.plan.sizes import padded_vocab_size
from megatron_ext.plan.stage_plan import DataPlan, NewToken, NewTokensPlan, StagePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems

RESIZE: KeyPath = ("resize_vocabulary",)


def plan_new_tokens(
    loaded: LoadedRecipe, data: DataPlan, giver: StagePlan | None, *, run_root: Path
) -> NewTokensPlan | None:
    """Which rows are new; None where the recipe does not resize, or a tokenizer is not there to be compared yet.

    Args:
        loaded: What was asked.
        data: What this stage reads.
        giver: The stage that gives the weights; None where nobody has named it.
        run_root: Folder whose stages keep their tokenizers.

    Raises:
        RecipeError: The tokenizers are not one and the same with more tokens, or nothing would be new.
    """
    if not loaded.recipe.resize_vocabulary or giver is None:
        return None
    here, there = data.tokenizer_fingerprint, giver.data.tokenizer_fingerprint
    if "" in (here, there):
        return None
    problems = Problems()
    rows, rows_there = padded_vocab_size(loaded.recipe.model.vocab_size), giver.model_size.padded_vocab_size
    added: dict[str, int] = {}
    unused: tuple[int, ...] = ()
    try:
        known = data.tokenizer if here == there else _tokenizer_of(giver, run_root)
        unused = unused_ids(known)
        if here != there:
            added = tokens_added(data.tokenizer, to=known)
        elif rows == rows_there:
            message = f"true, and tokenizer and padded vocabulary are those of {giver.stage_id}; remove it"
            problems.add(loaded.origin(RESIZE), RESIZE, message)
    except DataError as error:
        message = (
            f"true takes a tokenizer that adds tokens to that of the weights and changes nothing else, and "
            f"{data.tokenizer} is none: {error}.\n  Add the tokens to the tokenizer of {giver.stage_id}, and make the "
            "data with that one."
        )
        problems.add(loaded.origin(RESIZE), RESIZE, message)
    problems.raise_recipe_error()
    return NewTokensPlan(
        tokens=tuple(NewToken(token=token, id=number) for token, number in added.items()),
        known_tokenizer_fingerprint=there,
        known_vocab_size=giver.data.tokenizer_vocab_size,
        unused_ids=unused,
        known_rows=rows_there,
        rows=rows,
    )


def tokens_to_add(data: DataPlan, giver: StagePlan, *, run_root: Path) -> dict[str, int]:
    """The tokens that `resize_vocabulary` would give rows; none where it could not."""
    try:
        return tokens_added(data.tokenizer, to=_tokenizer_of(giver, run_root))
    except DataError:
        return {}


def _tokenizer_of(giver: StagePlan, run_root: Path) -> str:
    """Files of the tokenizer that the weights read with: where the plan found them, or a checkpoint's copy."""
    kept = sorted((run_root / "stages" / giver.stage_id / "checkpoints").glob("step_*/tokenizer"))
    for folder in (giver.data.tokenizer, *map(str, kept)):
        try:
            if fingerprint(folder) == giver.data.tokenizer_fingerprint:
                return folder
        except DataError:
            continue
    raise DataError(
        f"{giver.data.tokenizer} is not the tokenizer that the weights read with any more, and no checkpoint of "
        f"{giver.stage_id} in {run_root} has a copy to compare with"
    )
