"""Commands that carry weights somewhere: `rl-handoff`, `generate`, `evaluate`, `export`, `import`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_ext.cli.arguments import positive, recipe_arguments, run_root_argument
from megatron_ext.cli.verb import Verb


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


def _rl_handoff_arguments(add: Any) -> None:
    recipe_arguments(add)
    add("--to", type=Path, required=True, metavar="DIR", help="folder to be made")
    add("--engine", choices=("verl", "nemo-rl"), default="verl", help="who runs the stage (default: verl)")
    add("--world-size", type=positive, metavar="N", help="GPUs of the run (default: the fewest of the layout)")
    run_root_argument(add)


def _generate(arguments: argparse.Namespace) -> int | None:
    from megatron_ext.rollout.cli import main_generate

    return main_generate(arguments)


def _generate_arguments(add: Any) -> None:
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a stage's folder, or one of its checkpoints/step_N")
    add("--prompt", required=True, help="text to go on from")
    add("--chat", action="store_true", help="ask the prompt as a question, in the chat template of an sft stage")
    add("--max-new-tokens", type=positive, default=128, metavar="N", help="tokens to write at most (default: 128)")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token each time (default: 0)")
    add("--top-k", type=int, default=0, metavar="K", help="sample among the K likeliest; 0 among all (default: 0)")
    add("--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest that hold P (default: 1)")
    add("--seed", type=int, default=1234, help="seed of the sampling (default: 1234)")


def _evaluate(arguments: argparse.Namespace) -> int | None:
    from megatron_ext.evaluate.cli import main_evaluate

    return main_evaluate(arguments)


def _evaluate_arguments(add: Any) -> None:
    from megatron_ext.evaluate.cli import add_arguments

    add_arguments(add)


def _export(arguments: argparse.Namespace) -> None:
    from megatron_ext.convert.cli import main_export

    main_export(arguments)


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


def _import(arguments: argparse.Namespace) -> None:
    from megatron_ext.convert.cli import main_import

    main_import(arguments)


def _import_arguments(add: Any) -> None:
    add("folder", type=Path, metavar="HF_DIR", help="folder with config.json, safetensors files and tokenizer.json")
    add("--to", type=Path, required=True, metavar="RUN_ROOT", help="run root; the stage is made in RUN_ROOT/stages")
    add("--verify", action="store_true", help="compare logits with transformers' before the stage gets its name")


VERBS = (
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
)
