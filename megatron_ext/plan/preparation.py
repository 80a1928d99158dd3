"""`megatron-ext prepare`: computes ahead, once, what every run of a recipe would compute at its start."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.plan.datasets import read_data
from megatron_ext.plan.make import make_stage_plan
from megatron_ext.plan.packing import packing_table, plan_rows
from megatron_ext.plan.render import terminal
from megatron_ext.plan.sft import plan_sft
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems


def prepare_recipe(loaded: LoadedRecipe, *, run_root: Path) -> None:
    """Puts into the store of `run_root` what the recipe needs of it, and says what that was.

    Args:
        loaded: The recipe.
        run_root: Folder that holds `prepared/` and `stages/`.

    Raises:
        DataError: Data that is missing, damaged, or does not fit.
        OSError: The store cannot be written.
    """
    if loaded.recipe.stage == "sft":
        _prepare_conversations(loaded, run_root)
        return
    if loaded.recipe.stage == "rl":
        print(f"{loaded.path}: nothing needs preparing in {run_root}: prompts are read as they lie.")
        return
    if loaded.recipe.data.packing == "none":
        print(f"{loaded.path}: nothing needs preparing in {run_root}: samples are cut from the sources as they lie.")
        return
    _prepare_rows(loaded, run_root)


def _prepare_conversations(loaded: LoadedRecipe, run_root: Path) -> None:
    """Rows follow from data, seed and options: a parent that nobody has named yet changes none of them."""
    if loaded.recipe.awaits_weights:
        packed = plan_sft(loaded, [], store=str(run_root), is_kept=True)
        rows, steps = packed.rows, len(packed.rows_of_steps)
    else:  # what does not fit the parent is told now, and not when many ranks start
        plan = make_stage_plan(loaded, run_root=run_root)
        assert plan.sft is not None, "an sft stage has its rows planned"
        rows, steps = plan.sft.rows, plan.batch.total_steps
    print(f"{loaded.path}: {rows:,} rows of {steps:,} steps are kept in {run_root / 'prepared'}")
    if loaded.recipe.awaits_weights:
        print("init_from is unresolved: whether data and model fit the stage that will give the weights, the run says.")


def _prepare_rows(loaded: LoadedRecipe, run_root: Path) -> None:
    _, pairs = read_data(loaded, may_be_provisional=False)
    datasets = [pair["prefix"] for pair in pairs]
    problems = Problems()
    rows = []
    for index, dataset in enumerate(datasets):
        assert dataset is not None, "nothing is provisional"
        packed = plan_rows(loaded, index, dataset, problems, store=run_root, is_kept=True)
        rows.append((loaded.sources[index].source, dataset.documents, packed))
    problems.raise_data_error()
    length, long_documents = loaded.recipe.training.sequence_length, loaded.recipe.data.long_documents
    console = terminal()
    console.print(packing_table(rows, sequence_length=length, long_documents=long_documents))
    console.print(f"kept in {run_root / 'prepared'}")
