"""Commands that read recipes: `show`, `diff`, `prepare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_ext.cli.arguments import common_arguments, recipe_arguments, run_root_argument
from megatron_ext.cli.verb import Verb


def _show(arguments: argparse.Namespace) -> None:
    from megatron_ext.plan.datasets import is_declared
    from megatron_ext.recipe.explain import explain, resolved_yaml
    from megatron_ext.recipe.load import load_recipe

    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    for key in arguments.explain:
        print(explain(loaded, key))
    if not arguments.explain:
        print(resolved_yaml(loaded), end="")
        for index, source in enumerate(loaded.sources):
            if is_declared(loaded, index):
                print(f"# {source.source}: {source.declared_tokens:,} tokens declared, data not built yet")


def _show_arguments(add: Any) -> None:
    recipe_arguments(add)
    add(
        "--explain",
        action="append",
        default=[],
        metavar="KEY",
        help="explain one key, such as optimizer.lr; repeatable",
    )


def _diff(arguments: argparse.Namespace) -> None:
    from megatron_ext.plan.compare import print_comparison
    from megatron_ext.recipe.load import load_recipe

    first, second = (load_recipe(path, overrides=arguments.set, site=arguments.site) for path in arguments.recipes)
    print_comparison(first, second, run_root=arguments.run_root)


def _diff_arguments(add: Any) -> None:
    add("recipes", nargs=2, type=Path, metavar="RECIPE", help="two stage recipes")
    common_arguments(add)
    run_root_argument(add)


def _prepare(arguments: argparse.Namespace) -> None:
    from megatron_ext.plan.preparation import prepare_recipe
    from megatron_ext.recipe.load import load_recipe

    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    prepare_recipe(loaded, run_root=Path(arguments.run_root or loaded.site.run_root))


def _prepare_arguments(add: Any) -> None:
    recipe_arguments(add)
    add("--run-root", type=Path, metavar="DIR", help="folder that holds prepared/ (default: the site's run_root)")


VERBS = (
    Verb(
        "show",
        "show recipes/demo/pretrain.yaml --explain optimizer.lr",
        "Print the complete recipe with the origin of every value, or explain one key.",
        _show,
        _show_arguments,
    ),
    Verb(
        "diff",
        "diff recipes/demo/base_60.yaml recipes/demo/pretrain.yaml",
        "Print the keys that two recipes set differently, and whether they are the same stage.",
        _diff,
        _diff_arguments,
    ),
    Verb(
        "prepare",
        "prepare recipes/demo/sft.yaml",
        "Compute ahead, once, what every run of a recipe would compute at its start.",
        _prepare,
        _prepare_arguments,
    ),
)
