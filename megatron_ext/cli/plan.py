"""Commands that say what would run, or refuse it: `validate`, `plan`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.errors import UsageError, UserError
from megatron_ext.cli.arguments import number_of_bytes, positive, recipe_arguments, run_root_argument
from megatron_ext.cli.verb import Verb

if TYPE_CHECKING:
    from megatron_ext.plan.hardware import Gpu
    from megatron_ext.plan.measured import MeasuredPoint


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
    from megatron_ext.plan.predict import anchor_of, predict
    from megatron_ext.plan.render import plan_json, print_plan
    from megatron_ext.recipe.load import load_recipe

    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    plan = make_stage_plan(
        loaded, world_size=arguments.world_size, may_be_provisional=True, run_root=arguments.run_root
    )
    time = prediction = None
    if arguments.gpu is not None and arguments.mfu is None:
        gpu = _gpu(arguments)
        prediction = predict(plan, gpu, anchor_of(loaded.recipe, gpu, _points(arguments)))
    else:
        time = gpu_time(plan, mfu=arguments.mfu, gpu=arguments.gpu)
    if time is not None or prediction is not None:
        plan = with_gpu_memory(plan)
    if arguments.json:
        print(plan_json(plan, time, prediction))
    else:
        run_root = Path(arguments.run_root or loaded.site.run_root)
        print_plan(plan, run_root=run_root, time=time, prediction=prediction)


def _gpu(arguments: argparse.Namespace) -> Gpu:
    """The GPU that is named, with the network that is stated."""
    from megatron_ext.plan.hardware import known_gpu

    gpu = known_gpu(arguments.gpu)
    return gpu if arguments.network is None else gpu._replace(network=float(arguments.network))


def _points(arguments: argparse.Namespace) -> list[MeasuredPoint]:
    """The measured steps that came with the code, and those of --points."""
    from megatron_ext.plan.measured import read_points

    return read_points() + (read_points(arguments.points) if arguments.points is not None else [])


def _refuse_idle_options(arguments: argparse.Namespace) -> None:
    """Options of `plan` that the rest of the command line would leave unread."""
    if arguments.gpus is not None:
        raise UsageError(f"plan: --gpus {arguments.gpus}: is --world-size now.")
    unread = {"without --suggest": ("gpu_memory",)}
    if arguments.suggest:
        unread = {"with --suggest": ("mfu",)}
    if arguments.gpu is None:
        unread["without --gpu"] = ("network", "points")
    elif arguments.mfu is not None:
        unread["with --mfu"] = ("network", "points")
    for where, names in unread.items():
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]
        if given:
            raise UsageError(f"plan: {', '.join(given)}: not read {where}; change the one or the other.")


def _suggest(arguments: argparse.Namespace) -> None:
    from megatron_ext.plan.predict import anchor_of
    from megatron_ext.plan.render_suggestions import print_suggestions, suggestions_json
    from megatron_ext.plan.suggest import search_layouts
    from megatron_ext.recipe.load import load_recipe

    memory = arguments.gpu_memory
    if memory is None and arguments.gpu is not None:
        memory = _gpu(arguments).memory
    if arguments.world_size is None or memory is None:
        raise UsageError("plan: --suggest needs --world-size N, and --gpu GPU or --gpu-memory SIZE, such as 80GB.")
    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    speed, unknown = None, ""
    if arguments.gpu is not None:
        gpu = _gpu(arguments)
        try:
            speed = gpu, anchor_of(loaded.recipe, gpu, _points(arguments))
        except UsageError as error:
            unknown = str(error).removeprefix("plan: ")
    search = search_layouts(
        loaded, gpus=arguments.world_size, gpu_memory=memory, run_root=arguments.run_root, speed=speed
    )
    if arguments.json:
        print(suggestions_json(search.found))
    else:
        print_suggestions(search, loaded, gpus=arguments.world_size, gpu_memory=memory, unknown=unknown)


def _plan_arguments(add: Any) -> None:
    recipe_arguments(add)
    add(
        "--world-size",
        type=positive,
        metavar="N",
        help="processes of the run (default: the fewest that the layout needs)",
    )
    add("--mfu", type=float, metavar="RATIO", help="say GPU-hours at this share of the peak, such as 0.45; with --gpu")
    add(
        "--gpu",
        metavar="GPU",
        help="a100, h100 or h200: predict the speed from the nearest measured step; with --mfu also a dense bf16 peak "
        "in TFLOP/s, such as 989.4",
    )
    add(
        "--network",
        type=number_of_bytes,
        metavar="SIZE",
        help="with --gpu, of predictions: what a GPU's adapter moves a second, one way (default: 25GB of an a100, 50GB "
        "of an h100 or h200)",
    )
    add("--points", type=Path, metavar="FILE", help="with --gpu: measured steps of yours too (make gpu-check)")
    add("--json", action="store_true", help="print the plan or the suggestions alone, as JSON")
    add(
        "--suggest",
        action="store_true",
        help="rank layouts of --world-size processes that fit --gpu (by predicted speed) or --gpu-memory, instead of "
        "planning one",
    )
    add("--gpus", help=argparse.SUPPRESS)
    add(
        "--gpu-memory",
        type=number_of_bytes,
        metavar="SIZE",
        help="with --suggest: memory of one GPU, such as 80GB or 80GiB (default: that of --gpu)",
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
        "plan recipes/front_loading/pretrain/base_v1.yaml --suggest --world-size 512 --gpu h100",
    ),
)
