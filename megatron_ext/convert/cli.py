"""`megatron-ext export` and `megatron-ext import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.errors import UsageError
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
    from megatron_ext.convert.export import export_checkpoint
    from megatron_ext.convert.export_record import record_export
    from megatron_ext.convert.giver import is_stock

    path: Path = args.checkpoint
    if not (is_foreign := is_stock(path)):
        path = find_checkpoint(path)
    done = export_checkpoint(
        path,
        args.to,
        dtype=args.dtype,
        verify=args.verify,
        model=_model(args.model),
        tokenizer=args.tokenizer,
    )
    unrecorded = None if is_foreign else record_export(path, done)
    for note in (*done.notes, *([unrecorded] if unrecorded else [])):
        print(f"NOTE: {note}")
    print(f"{done.path}: {done.parameters:,} numbers in {done.dtype}")
    if not args.verify:
        print("  logits not compared; export again with --verify, into another folder, to see that they agree")


def main_import(args: argparse.Namespace) -> None:
    """Makes a stage of a Hugging Face checkpoint, and says what to write into a recipe.

    Args:
        args: `folder`, `to`, `verify`.
    """
    quiet_known_warnings()
    from megatron_ext.convert.import_hf import import_checkpoint

    done = import_checkpoint(args.folder, args.to, verify=args.verify)
    for note in done.notes:
        print(f"NOTE: {note}")
    print(f"{done.folder}: {done.plan.model_size.total_parameters:,} parameters in {done.plan.precision}")
    print(
        "  In a recipe that begins with it:\n"
        f"    init_from: {done.plan.stage_id}\n"
        f"    model: {done.folder / 'model.yaml'}\n"
        f"    data: {{tokenizer: {done.folder / 'checkpoints' / 'step_0' / 'tokenizer'}}}\n"
        f"  Run it with --run-root {args.to}."
    )


def _model(file: Path | None) -> ModelRecipe | None:
    if file is None:
        return None
    model = load_file(file)
    if not isinstance(model, ModelRecipe):
        raise UsageError(f"--model {file}: no model file; name one as in recipes/models.")
    return model
