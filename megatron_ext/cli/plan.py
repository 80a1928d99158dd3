"""Commands that say what would run, or refuse it: `validate`, `plan`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from data_tools.errors import UsageError, UserError
from megatron_ext.cli.arguments import number_of_bytes, positive, recipe_arguments, run_root_argument
from megatron_ext.cli.verb import Verb


def _validate(arguments: argparse.Namespace) -> int:
    from megatron_ext.study.validate import validate

    code = 0
    for file in arguments.files:
        try:
            print(validate(file))
            if arguments.isolation:
                print(f"{file}: isolation holds: {_prove_isolation(file)}")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = max(code, error.exit_code)
    return code


def _validate_arguments(add: Any) -> None:
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="any YAML file of recipes/: stage, arm, study, suite, model, source, blend or site",
    )
    add("--isolation", action="store_true", help="build each stage's model and prove that packed documents do not meet")


def _prove_isolation(file: Path) -> str:
    from megatron_ext.runtime.warnings import quiet_known_warnings

    quiet_known_warnings()
    from megatron_ext.models.build import build_model
    from megatron_ext.plan.make import make_stage_plan
    from megatron_ext.plan.placement import placed
    from megatron_ext.recipe.load import LoadedRecipe, load_file
    from megatron_ext.runtime.launch import Launch
    from megatron_ext.runtime.parallel import process_groups
    from megatron_ext.training.isolation import require_isolation

    loaded = load_file(file)
    if not isinstance(loaded, LoadedRecipe):
        raise UsageError(f"validate: --isolation: {file} is no stage recipe, so it says no precision; name one.")
    plan = placed(make_stage_plan(loaded, may_be_provisional=True))
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as groups:
        return str(require_isolation(build_model(plan, groups), plan, groups))


def _plan(arguments: argparse.Namespace) -> None:
    _refuse_idle_options(arguments)
    if arguments.suggest:
        _suggest(arguments)
        return
    from megatron_ext.plan.cost import gpu_time, with_gpu_memory
    from megatron_ext.plan.make import make_stage_plan
    from megatron_ext.plan.render import plan_json, print_plan
    from megatron_ext.recipe.load import load_recipe

    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    plan = make_stage_plan(
        loaded, world_size=arguments.world_size, may_be_provisional=True, run_root=arguments.run_root
    )
    if (time := gpu_time(plan, mfu=arguments.mfu, gpu=arguments.gpu)) is not None:
        plan = with_gpu_memory(plan)
    if arguments.json:
        print(plan_json(plan, time))
    else:
        print_plan(plan, run_root=Path(arguments.run_root or loaded.site.run_root), time=time)


def _refuse_idle_options(arguments: argparse.Namespace) -> None:
    """Options of `plan` that the rest of the command line would leave unread."""
    unread: dict[str, tuple[str, ...]] = {"without --suggest": ("gpus", "gpu_memory")}
    if arguments.suggest:
        unread = {"with --suggest": ("world_size", "mfu", "gpu")}
    for where, names in unread.items():
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]
        if given:
            raise UsageError(f"plan: {', '.join(given)}: not read {where}; change the one or the other.")


def _suggest(arguments: argparse.Namespace) -> None:
    from megatron_ext.plan.render_suggestions import print_suggestions, suggestions_json
    from megatron_ext.plan.suggest import suggest_layouts
    from megatron_ext.recipe.load import load_recipe

    if arguments.gpus is None or arguments.gpu_memory is None:
        raise UsageError("plan: --suggest needs --gpus N and --gpu-memory SIZE, such as 80GB.")
    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    found = suggest_layouts(loaded, gpus=arguments.gpus, gpu_memory=arguments.gpu_memory, run_root=arguments.run_root)
    if arguments.json:
        print(suggestions_json(found))
    else:
        print_suggestions(found, loaded, gpus=arguments.gpus, gpu_memory=arguments.gpu_memory)


def _plan_arguments(add: Any) -> None:
    recipe_arguments(add)
    add(
        "--world-size",
        type=positive,
        metavar="N",
        help="processes of the run (default: the fewest that the layout needs)",
    )
    add("--mfu", type=float, metavar="RATIO", help="say GPU-hours at this share of the peak, such as 0.45; with --gpu")
    add("--gpu", metavar="GPU", help="h100, h200, a100, or dense bf16 peak in TFLOP/s, such as 989.4; with --mfu")
    add("--json", action="store_true", help="print the plan or the suggestions alone, as JSON")
    add("--suggest", action="store_true", help="rank layouts that fit --gpus of --gpu-memory, instead of planning one")
    add("--gpus", type=positive, metavar="N", help="with --suggest: processes of the run")
    add(
        "--gpu-memory",
        type=number_of_bytes,
        metavar="SIZE",
        help="with --suggest: memory of one GPU, such as 80GB or 80GiB",
    )
    run_root_argument(add)


VERBS = (
    Verb(
        "validate",
        "validate recipes/demo/pretrain.yaml recipes/models/hybrid_tiny.yaml",
        "Check recipe files, all errors at once; one line for each file.",
        _validate,
        _validate_arguments,
        "validate recipes/demo/sft.yaml --isolation",
    ),
    Verb(
        "plan",
        "plan recipes/demo/pretrain.yaml",
        "Show everything that a stage will do, before anything does it.",
        _plan,
        _plan_arguments,
        "plan recipes/front_loading/sft/shq.yaml --suggest --gpus 64",
    ),
)
