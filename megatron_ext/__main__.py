"""The command line: `megatron-ext VERB …`, or `python -m megatron_ext VERB …`.

    python -m megatron_ext plan recipes/demo/pretrain.yaml

Only `trace`, `generate`, `evaluate`, `export`, `import`, `doctor` and `validate --isolation` import torch, when they
run (`trace` for Megatron-Core's reader of `.idx`, which imports it): the others answer in about a second on any laptop.
Exit codes: see data_tools/errors.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.command_line import exit_code_of
from data_tools.errors import UsageError, UserError
from data_tools.quantities import parse_bytes


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns its exit code."""
    if (sys.argv[1:] if argv is None else argv)[:1] == ["run"]:
        return exit_code_of(_refuse_run)
    arguments = build_parser().parse_args(argv)
    return exit_code_of(lambda: arguments.handler(arguments))


def _refuse_run() -> None:
    raise UsageError(f"run: a stage is trained by another program: {RUN}; the same behind torchrun on several ranks.")


RUN = "python -m megatron_ext.run RECIPE"


@dataclass(frozen=True)
class Verb:
    """One command of the command line."""

    name: str
    example: str  # runs on the sample data, after `make demo`
    summary: str
    handler: Callable[[argparse.Namespace], int | None]
    arguments: Callable[[Any], None]
    another: str = ""  # a second example, of fine-tuning


class _ExampleFirst(argparse.ArgumentParser):
    """A parser whose help starts with a command that can be typed as it stands."""

    example = ""

    def format_help(self) -> str:
        return f"{self.example}\n\n{super().format_help()}" if self.example else super().format_help()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _ExampleFirst(
        prog="megatron-ext",
        description="Decide where reasoning data goes, and find out by training.",
        epilog=f"Training itself: {RUN}",
    )
    parser.example = "python -m megatron_ext plan recipes/demo/pretrain.yaml"
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_ExampleFirst)
    for verb in VERBS:
        sub = verbs.add_parser(verb.name, help=verb.summary, description=verb.summary)
        sub.example = "\n".join(f"python -m megatron_ext {words}" for words in (verb.example, verb.another) if words)
        verb.arguments(sub.add_argument)
        sub.set_defaults(handler=verb.handler)
    return parser


def _validate(arguments: argparse.Namespace) -> int:
    from megatron_ext.evaluate.suite import is_suite, read_suite
    from megatron_ext.plan.validate import validate_file

    code = 0
    for file in arguments.files:
        try:
            if is_suite(file):
                suite = read_suite(file)
                print(f"{file}: ok: suite {suite.name}, {len(suite.tasks)} tasks, {len(suite.aggregates)} means")
                continue
            print(validate_file(file))
            if arguments.isolation:
                print(f"{file}: isolation holds: {_prove_isolation(file)}")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = max(code, error.exit_code)
    return code


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


def _diff(arguments: argparse.Namespace) -> None:
    from megatron_ext.plan.compare import print_comparison
    from megatron_ext.recipe.load import load_recipe

    first, second = (load_recipe(path, overrides=arguments.set, site=arguments.site) for path in arguments.recipes)
    print_comparison(first, second, run_root=arguments.run_root)


def _prepare(arguments: argparse.Namespace) -> None:
    from megatron_ext.plan.preparation import prepare_recipe
    from megatron_ext.recipe.load import load_recipe

    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    prepare_recipe(loaded, run_root=Path(arguments.run_root or loaded.site.run_root))


def _ledger(arguments: argparse.Namespace) -> None:
    from megatron_ext.datasets.ledger import ledger_json, read_ledger
    from megatron_ext.datasets.ledger_view import print_ledger

    rows = read_ledger(arguments.checkpoint)
    if arguments.png is not None:
        from megatron_ext.datasets.ledger_chart import draw_ledger, stretches_of

        draw_ledger(arguments.png, stretches_of(rows, arguments.checkpoint), title=f"Read by {arguments.checkpoint}")
        print(f"wrote {arguments.png}", file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(ledger_json(rows))
    else:
        print_ledger(rows, arguments.checkpoint)


def _trace(arguments: argparse.Namespace) -> None:
    from megatron_ext.training.traced_stage import read_traced_stage

    read_traced_stage(arguments.stage_folder, arguments.step)  # what is refused needs no torch
    from megatron_ext.runtime.warnings import quiet_known_warnings

    quiet_known_warnings()
    from megatron_ext.training.step_documents import print_trace

    with_text = arguments.text or arguments.tokenizer is not None
    print_trace(arguments.stage_folder, arguments.step, tokenizer=arguments.tokenizer, with_text=with_text)


def _rollouts(arguments: argparse.Namespace) -> None:
    from megatron_ext.datasets.rollout_view import print_rollouts

    print_rollouts(
        arguments.stage_folder,
        step=arguments.step,
        best=arguments.best,
        worst=arguments.worst,
        domain=arguments.domain,
        prompt=arguments.prompt,
        as_json=arguments.json,
    )


def _rl_handoff(arguments: argparse.Namespace) -> None:
    from megatron_ext.plan.make import make_stage_plan
    from megatron_ext.recipe.load import load_recipe
    from megatron_ext.runtime.warnings import quiet_known_warnings

    quiet_known_warnings()
    from megatron_ext.handoff.write import hand_off

    loaded = load_recipe(arguments.recipe, overrides=arguments.set, site=arguments.site)
    run_root = Path(arguments.run_root or loaded.site.run_root)
    plan = make_stage_plan(loaded, world_size=arguments.world_size, run_root=run_root)
    lost = hand_off(plan, arguments.to, run_root=run_root, engine=arguments.engine)
    print(f"{arguments.to}: {plan.stage_id} for {arguments.engine}; begin with {arguments.to / 'HANDOFF.md'}")
    print("Not carried over:")
    for one in lost:
        print(f"  {one.recipe_key}: {one.what}")


def _generate(arguments: argparse.Namespace) -> int | None:
    from megatron_ext.rollout.cli import main_generate

    return main_generate(arguments)


def _evaluate(arguments: argparse.Namespace) -> int | None:
    from megatron_ext.evaluate.cli import main_evaluate

    return main_evaluate(arguments)


def _evaluate_arguments(add: Any) -> None:
    from megatron_ext.evaluate.cli import add_arguments

    add_arguments(add)


def _export(arguments: argparse.Namespace) -> None:
    from megatron_ext.convert.cli import main_export

    main_export(arguments)


def _import(arguments: argparse.Namespace) -> None:
    from megatron_ext.convert.cli import main_import

    main_import(arguments)


def _doctor(arguments: argparse.Namespace) -> int | None:
    from megatron_ext.runtime.doctor import print_report

    return print_report()


def _validate_arguments(add: Any) -> None:
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="any YAML file of recipes/: stage, model, source, blend, site or suite",
    )
    add("--isolation", action="store_true", help="build each stage's model and prove that packed documents do not meet")


def _plan_arguments(add: Any) -> None:
    _recipe_arguments(add)
    add(
        "--world-size",
        type=_positive,
        metavar="N",
        help="processes of the run (default: the fewest that the layout needs)",
    )
    add("--mfu", type=float, metavar="RATIO", help="say GPU-hours at this share of the peak, such as 0.45; with --gpu")
    add("--gpu", metavar="GPU", help="h100, h200, a100, or dense bf16 peak in TFLOP/s, such as 989.4; with --mfu")
    add("--json", action="store_true", help="print the plan or the suggestions alone, as JSON")
    add("--suggest", action="store_true", help="rank layouts that fit --gpus of --gpu-memory, instead of planning one")
    add("--gpus", type=_positive, metavar="N", help="with --suggest: processes of the run")
    add("--gpu-memory", type=_bytes, metavar="SIZE", help="with --suggest: memory of one GPU, such as 80GB or 80GiB")
    _run_root_argument(add)


def _show_arguments(add: Any) -> None:
    _recipe_arguments(add)
    add(
        "--explain",
        action="append",
        default=[],
        metavar="KEY",
        help="explain one key, such as optimizer.lr; repeatable",
    )


def _diff_arguments(add: Any) -> None:
    add("recipes", nargs=2, type=Path, metavar="RECIPE", help="two stage recipes")
    _common_arguments(add)
    _run_root_argument(add)


def _prepare_arguments(add: Any) -> None:
    _recipe_arguments(add)
    add("--run-root", type=Path, metavar="DIR", help="folder that holds prepared/ (default: the site's run_root)")


def _ledger_arguments(add: Any) -> None:
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a stage's folder, or one of its checkpoints/step_N")
    add("--json", action="store_true", help="print the rows alone, as JSON")
    add("--png", type=Path, metavar="FILE", help="also draw the tokens read by source (needs matplotlib)")


def _trace_arguments(add: Any) -> None:
    add("stage_folder", type=Path, metavar="STAGE_FOLDER", help="a stage's folder, finished or not")
    add("--step", type=_positive, required=True, metavar="N", help="which step, from 1; it need not be trained yet")
    add("--text", action="store_true", help="also decode what was read")
    add("--tokenizer", type=Path, metavar="DIR", help="decode with this copy of the stage's tokenizer; implies --text")


def _rollouts_arguments(add: Any) -> None:
    add("stage_folder", type=Path, metavar="STAGE_FOLDER", help="the folder of an rl stage, finished or not")
    add("--step", type=_positive, metavar="N", help="which step, from 1 (default: the newest)")
    add("--best", type=_positive, metavar="N", help="show the N completions with the highest rewards")
    add("--worst", type=_positive, metavar="N", help="show the N completions with the lowest rewards")
    add("--domain", metavar="NAME", help="only of this domain: code, general, math, science")
    add("--prompt", metavar="ID", help="all completions of prompts whose name or id begins so")
    add("--json", action="store_true", help="print the completions alone, one JSON object a line")


def _rl_handoff_arguments(add: Any) -> None:
    _recipe_arguments(add)
    add("--to", type=Path, required=True, metavar="DIR", help="folder to be made")
    add("--engine", choices=("verl", "nemo-rl"), default="verl", help="who runs the stage (default: verl)")
    add("--world-size", type=_positive, metavar="N", help="GPUs of the run (default: the fewest of the layout)")
    _run_root_argument(add)


def _generate_arguments(add: Any) -> None:
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a stage's folder, or one of its checkpoints/step_N")
    add("--prompt", required=True, help="text to go on from")
    add("--chat", action="store_true", help="ask the prompt as a question, in the chat template of an sft stage")
    add("--max-new-tokens", type=_positive, default=128, metavar="N", help="tokens to write at most (default: 128)")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token each time (default: 0)")
    add("--top-k", type=int, default=0, metavar="K", help="sample among the K likeliest; 0 among all (default: 0)")
    add("--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest that hold P (default: 1)")
    add("--seed", type=int, default=1234, help="seed of the sampling (default: 1234)")


def _export_arguments(add: Any) -> None:
    add(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a stage's folder, or one of its checkpoints/step_N; or a torch_dist checkpoint of Megatron-LM",
    )
    add("--to", type=Path, required=True, metavar="DIR", help="folder to make; it must not exist")
    add("--dtype", choices=("bf16", "fp32"), help="of the written weights (default: as the checkpoint has them)")
    add("--verify", action="store_true", help="compare logits with transformers' before DIR gets its name")
    add("--model", type=Path, metavar="FILE", help="of a checkpoint of Megatron-LM: its model, as in recipes/models")
    add("--tokenizer", type=Path, metavar="DIR", help="of a checkpoint of Megatron-LM: its tokenizer's folder")


def _import_arguments(add: Any) -> None:
    add("folder", type=Path, metavar="HF_DIR", help="folder with config.json, safetensors files and tokenizer.json")
    add("--to", type=Path, required=True, metavar="RUN_ROOT", help="run root; the stage is made in RUN_ROOT/stages")
    add("--verify", action="store_true", help="compare logits with transformers' before the stage gets its name")


def _doctor_arguments(add: Any) -> None:
    pass


def _recipe_arguments(add: Any) -> None:
    add("recipe", type=Path, metavar="RECIPE", help="a stage recipe, such as recipes/demo/pretrain.yaml")
    _common_arguments(add)


def _common_arguments(add: Any) -> None:
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, such as optimizer.lr=1e-3")
    add("--site", type=Path, metavar="FILE", help="paths of this place (default: recipes/sites/laptop.yaml)")


def _run_root_argument(add: Any) -> None:
    add(
        "--run-root",
        type=Path,
        metavar="DIR",
        help="folder that holds stages/, parents named by their id among them (default: the site's run_root)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
    Verb(
        "ledger",
        "ledger runs/stages/pretrain-*",
        "Say what a checkpoint has read, and how often, by source and phase and over its chain of stages.",
        _ledger,
        _ledger_arguments,
        "ledger runs/stages/rl-*",
    ),
    Verb(
        "trace",
        "trace runs/stages/pretrain-* --step 1 --text",
        "List the documents of one step's batch: source, place, file and row they came from, and their text. "
        "Imports torch, as Megatron-Core's index reader does: it takes seconds to begin.",
        _trace,
        _trace_arguments,
        "trace runs/stages/sft-ID --step 1 --text",
    ),
    Verb(
        "rollouts",
        "rollouts runs/stages/rl-* --best 2 --worst 2",
        "Show the completions that a step of an rl stage has sampled, with their rewards.",
        _rollouts,
        _rollouts_arguments,
    ),
    Verb(
        "rl-handoff",
        "rl-handoff recipes/demo/rl.yaml --to handoff",
        "Write weights, prompts, rewards and configuration with which verl or NeMo-RL runs an rl stage.",
        _rl_handoff,
        _rl_handoff_arguments,
        "rl-handoff recipes/demo/rl.yaml --engine nemo-rl --to handoff-nemo",
    ),
    Verb(
        "generate",
        'generate runs/stages/pretrain-* --prompt "Return the"',
        "Let a checkpoint go on from a prompt.",
        _generate,
        _generate_arguments,
        "generate runs/stages/rl-* --chat --prompt 'What is 12 + 30?'",
    ),
    Verb(
        "evaluate",
        "evaluate runs/stages/pretrain-* --tasks held-out",
        "Say how good a checkpoint is: held-out loss, questions with answers that can be checked, benchmarks.",
        _evaluate,
        _evaluate_arguments,
        "evaluate runs/stages/rl-* --tasks verifiable:data/demo/raw/eval.jsonl --set limit=64 --set max_new_tokens=32",
    ),
    Verb(
        "export",
        "export runs/stages/pretrain-* --to exported/pretrain",
        "Write a checkpoint of any layout as a Hugging Face model, with tokenizer and model card.",
        _export,
        _export_arguments,
        "export runs/stages/rl-* --to exported/rl --dtype bf16 --verify",
    ),
    Verb(
        "import",
        "import exported/pretrain --to runs",
        "Make a stage of a Hugging Face checkpoint, whose weights others begin with (init_from).",
        _import,
        _import_arguments,
    ),
    Verb("doctor", "doctor", "Say what this machine has installed and what that means.", _doctor, _doctor_arguments),
)


if __name__ == "__main__":
    sys.exit(main())
