"""`megatron-ext prepare`: computes ahead, once, what every run of a recipe would compute at its start."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.recipe.load import LoadedRecipe


def prepare_recipe(loaded: LoadedRecipe, *, run_root: Path) -> None:
    """Puts into the store of `run_root` what the recipe needs of it, and says what that was.

    Args:
        loaded: The recipe.
        run_root: Folder that holds `prepared/` and `stages/`.
    """
    print(f"{loaded.path}: nothing needs preparing in {run_root}: samples are cut from the sources as they lie.")
