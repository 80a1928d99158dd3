"""`megatron-ext export` and `megatron-ext import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.errors import UsageError
from megatron_ext.convert.giver import is_stock
from megatron_ext.recipe.load import load_file
from megatron_ext.recipe.schema import ModelRecipe
from megatron_ext.rollout.cli import find_checkpoint
from megatron_ext.runtime.warnings import quiet_known_warnings


def main_export(args: argparse.Namespace) -> None:
    """Writes a checkpoint as a Hugging Face model, and says where.

    Args:
        args: `checkpoint`, `to`, `dtype`, `verify`, `model`, `tokenizer`.
    """
    quiet_known_warnings()
    from megatron_ext.convert.export import export_checkpoint  # imports torch, which `--help` does not need

    path: Path = args.checkpoint
    done = export_checkpoint(
        path if is_stock(path) else find_checkpoint(path),
        args.to,
        dtype=args.dtype,
        verify=args.verify,
        model=_model(args.model),
        tokenizer=args.tokenizer,
    )
    for note in done.notes:
        print(f"NOTE: {note}")
    print(f"{done.path}: {done.parameters:,} numbers in {done.dtype}")
    if not args.verify:
        print("  logits not compared; export again with --verify, into another folder, to see that they agree")


def _model(file: Path | None) -> ModelRecipe | None:
    if file is None:
        return None
    model = load_file(file)
    if not isinstance(model, ModelRecipe):
        raise UsageError(f"--model {file}: no model file; name one as in recipes/models.")
    return model
