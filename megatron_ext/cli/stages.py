"""Commands that read what a stage has left: `ledger`, `trace`, `rollouts`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megatron_ext.cli.arguments import positive
from megatron_ext.cli.verb import Verb


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


def _ledger_arguments(add: Any) -> None:
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a stage's folder, or one of its checkpoints/step_N")
    add("--json", action="store_true", help="print the rows alone, as JSON")
    add("--png", type=Path, metavar="FILE", help="also draw the tokens read by source (needs matplotlib)")


def _trace(arguments: argparse.Namespace) -> None:
    from megatron_ext.training.traced_stage import read_traced_stage

    read_traced_stage(arguments.stage_folder, arguments.step)  # what is refused needs no torch
    from megatron_ext.runtime.warnings import quiet_known_warnings

    quiet_known_warnings()
    from megatron_ext.training.step_documents import print_trace

    with_text = arguments.text or arguments.tokenizer is not None
    print_trace(arguments.stage_folder, arguments.step, tokenizer=arguments.tokenizer, with_text=with_text)


def _trace_arguments(add: Any) -> None:
    add("stage_folder", type=Path, metavar="STAGE_FOLDER", help="a stage's folder, finished or not")
    add("--step", type=positive, required=True, metavar="N", help="which step, from 1; it need not be trained yet")
    add("--text", action="store_true", help="also decode what was read")
    add("--tokenizer", type=Path, metavar="DIR", help="decode with this copy of the stage's tokenizer; implies --text")


def _rollouts(arguments: argparse.Namespace) -> None:
    from megatron_ext.datasets.rollout_view import print_rollouts

    for folder in arguments.stage_folders:
        print_rollouts(
            folder,
            step=arguments.step,
            best=arguments.best,
            worst=arguments.worst,
            domain=arguments.domain,
            prompt=arguments.prompt,
            as_json=arguments.json,
        )


def _rollouts_arguments(add: Any) -> None:
    help_ = "the folder of an rl stage, finished or not; several are shown one after the other"
    add("stage_folders", type=Path, nargs="+", metavar="STAGE_FOLDER", help=help_)
    add("--step", type=positive, metavar="N", help="which step, from 1 (default: the newest)")
    add("--best", type=positive, metavar="N", help="show the N completions with the highest rewards")
    add("--worst", type=positive, metavar="N", help="show the N completions with the lowest rewards")
    add("--domain", metavar="NAME", help="only of this domain: code, general, math, science")
    add("--prompt", metavar="ID", help="all completions of prompts whose name or id begins so")
    add("--json", action="store_true", help="print the completions alone, one JSON object a line")


VERBS = (
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
)
