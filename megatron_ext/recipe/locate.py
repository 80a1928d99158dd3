"""Where recipe files are found, in a checkout and in an installed package.

`recipes/…` that does not exist below the working directory is looked up in the recipes that came
with the code, so that `plan recipes/demo/pretrain.yaml` works from any folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from data_tools.errors import RecipeError
from data_tools.strict_yaml import nearest

_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDER = "recipes"
_INSTALLED = "_recipes"  # the name under which setup.py ships the folder


def shipped_folders() -> tuple[Path, ...]:
    """Folders that may hold the recipes of this project: the installed package's, the checkout's."""
    return _PACKAGE / _INSTALLED, _PACKAGE.parent / _FOLDER


def locate(path: str | Path) -> Path:
    """The existing file that `path` names.

    Args:
        path: A file; one that starts with `recipes/` may also be one that came with the code.

    Returns:
        `path` itself when it exists, else the shipped file.

    Raises:
        RecipeError: No such file; the message lists where it was looked for, and the file of the nearest name.
    """
    path = Path(path)
    candidates = [path]
    if path.parts[:1] == (_FOLDER,):
        candidates += [folder.joinpath(*path.parts[1:]) for folder in shipped_folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder; name one of its files")
    looked = "".join(dict.fromkeys(f"\n  {os.path.abspath(candidate)}" for candidate in candidates))
    siblings = {file.stem for candidate in candidates for file in candidate.parent.glob("*.yaml")}
    near = nearest(path.stem, siblings)
    meant = f"\n  Did you mean {path.with_name(f'{near}.yaml')}?" if near is not None else ""
    raise RecipeError(f"{path}: no such file; looked for{looked}{meant}")


def shown(path: str | Path) -> str:
    """A path as messages show it: relative to the working directory where it lies below it.

    >>> shown(Path.cwd() / "recipes" / "." / "a.yaml")
    'recipes/a.yaml'
    """
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith(os.pardir) else relative


def beside(file: str | Path, path: str) -> str:
    """The path that a recipe file means when it writes `path`: relative to its own folder.

    >>> beside("recipes/demo/pretrain.yaml", "../models/hybrid_tiny.yaml")
    'recipes/models/hybrid_tiny.yaml'
    """
    return shown(Path(file).parent / path)
