"""What is exported: weights, the model that they are of, its tokenizer, and what is known of its past."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError, UsageError
from data_tools.tokenizer import TokenizerFacts, describe
from megatron_ext.convert.mapping import core_shapes, pieces_of
from megatron_ext.convert.torch_dist import TorchDistWeights
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.schema import ModelRecipe
from megatron_ext.training.file_list import read_plan, require_whole

LATEST = "latest_checkpointed_iteration.txt"
"""Megatron-LM writes it beside its `iter_0000100` folders."""

VOCABULARY = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class Giver:
    """A checkpoint that can be exported.

    Attributes:
        path: Its folder.
        weights: Every tensor that the model needs, and no other.
        model: What they are of.
        padded_vocab_size: Rows of the embedding.
        tokenizer: Folder.
        facts: Of the tokenizer.
        plan: Of the stage that wrote it; None of a checkpoint of Megatron-LM.
    """

    path: Path
    weights: TorchDistWeights
    model: ModelRecipe
    padded_vocab_size: int
    tokenizer: Path
    facts: TokenizerFacts
    plan: StagePlan | None


def is_stock(path: Path) -> bool:
    """Whether a folder is of Megatron-LM: an iteration, or the folder of several."""
    return not (path / "plan.json").is_file() and any((path / name).is_file() for name in (".metadata", LATEST))


def open_giver(path: Path, *, model: ModelRecipe | None = None, tokenizer: Path | None = None) -> Giver:
    """Opens a checkpoint, and compares what is in it with what its model needs.

    Args:
        path: A `step_N` folder of a stage; or, with `model` and `tokenizer`, a `torch_dist` checkpoint of Megatron-LM.
        model: Of a checkpoint of Megatron-LM, which does not say it in a form that can be read safely.
        tokenizer: Likewise.

    Raises:
        DataError: It is damaged, or its tensors are not those of the model, or the vocabulary is too small.
        UsageError: A model or tokenizer is missing, or is given for a checkpoint that has its own.
    """
    if not is_stock(path):
        if model is not None or tokenizer is not None:
            raise UsageError(f"{path}: --model, --tokenizer: this checkpoint has its own; leave them out.")
        plan = read_plan(path)
        require_whole(path)
        return _checked(path, plan.model, plan.model_size.padded_vocab_size, path / "tokenizer", plan)
    if model is None or tokenizer is None:
        raise UsageError(
            f"{path}: a checkpoint of Megatron-LM says neither model nor tokenizer; give --model FILE, a YAML file as "
            "in recipes/models, and --tokenizer DIR, a folder with tokenizer.json."
        )
    path = _iteration(path)
    weights = TorchDistWeights(path)
    if VOCABULARY not in weights.tensors:
        raise DataError(f"{path}: {VOCABULARY}: missing; no checkpoint of a whole language model.")
    return _checked(path, model, weights.tensors[VOCABULARY].shape[0], tokenizer, None, weights)


def _iteration(path: Path) -> Path:
    if (path / ".metadata").is_file():
        return path
    latest = (path / LATEST).read_text(errors="replace").strip()
    if latest != "release" and not latest.isdecimal():
        raise DataError(
            f"{path / LATEST}: damaged: it says {latest[:40]!r}, and no number; name one of the iter_… folders beside "
            "it."
        )
    return path / (latest if latest == "release" else f"iter_{int(latest):07}")


def _checked(
    path: Path,
    model: ModelRecipe,
    rows: int,
    tokenizer: Path,
    plan: StagePlan | None,
    weights: TorchDistWeights | None = None,
) -> Giver:
    weights = weights or TorchDistWeights(path)
    expected = core_shapes(pieces_of(model, rows))
    found = {name: facts.shape for name, facts in weights.tensors.items()}
    refuse_others(path, expected, found, what=f"the model {model.name}")
    facts = describe(tokenizer)
    if facts.vocab_size > rows:
        raise DataError(
            f"{tokenizer}: its largest id is {facts.vocab_size - 1:,}, and {path} has {rows:,} rows of embedding; take "
            "the tokenizer that it was trained with."
        )
    return Giver(path, weights, model, rows, tokenizer, facts, plan)


_SHOWN = 5


def refuse_others(
    path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], *, what: str
) -> None:
    """Refuses tensors that are not those of a model.

    Args:
        path: Where they are.
        expected: Shapes of the model's.
        found: Shapes of those that are there.
        what: The model, in words.

    Raises:
        DataError: Names those that are missing, too many, or of another shape.
    """
    lines = [
        f"  {name}: {_said(found.get(name), 'missing')}; {what} has {_said(expected.get(name), 'no such tensor')}"
        for name in dict.fromkeys([*expected, *found])
        if expected.get(name) != found.get(name)
    ]
    if lines:
        more = [f"  … and {len(lines) - _SHOWN} tensors more"] if len(lines) > _SHOWN else []
        raise DataError(f"{path}: its tensors are not those of {what}.\n" + "\n".join([*lines[:_SHOWN], *more]))


def _said(shape: tuple[int, ...] | None, absent: str) -> str:
    return absent if shape is None else " x ".join(map(str, shape))
