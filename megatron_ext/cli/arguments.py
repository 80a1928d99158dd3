"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.quantities import parse_bytes


def recipe_arguments(add: Any) -> None:
    """A recipe, overrides, a site."""
    add("recipe", type=Path, metavar="RECIPE", help="a stage recipe, such as recipes/demo/pretrain.yaml")
    common_arguments(add)


def common_arguments(add: Any) -> None:
    """Overrides and a site."""
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, such as optimizer.lr=1e-3")
    add("--site", type=Path, metavar="FILE", help="paths of this place (default: recipes/sites/laptop.yaml)")


def run_root_argument(add: Any) -> None:
    """Where stages are."""
    add(
        "--run-root",
        type=Path,
        metavar="DIR",
        help="folder that holds stages/, parents named by their id among them (default: the site's run_root)",
    )


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def number_of_bytes(text: str) -> int:
    """A size such as 80GB or 80GiB, in bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
