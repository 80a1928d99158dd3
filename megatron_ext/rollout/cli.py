"""`megatron-ext generate`: a checkpoint, a prompt, a text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_tools.chat_template_files import template_source
from data_tools.errors import DataError
from data_tools.tokenizer import Tokenizer
from megatron_ext.runtime.warnings import quiet_known_warnings
from megatron_ext.training.file_list import checkpoints_of


def main_generate(args: argparse.Namespace) -> int:
    """Prints the prompt and its continuation.

    Args:
        args: `checkpoint`, `prompt`, `chat`, `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`.

    Returns:
        Exit code 0.

    Raises:
        DataError: When `checkpoint` is neither a checkpoint nor a stage with one, or is damaged.
        UsageError: When an argument is outside its range.
    """
    checkpoint = find_checkpoint(args.checkpoint)
    if args.chat:
        _require_chat_template(checkpoint)
    quiet_known_warnings()
    # These import torch and Megatron-Core, which `--help` does not need.
    from megatron_ext.evaluate.loading import opened_checkpoint
    from megatron_ext.rollout.chat_prompt import chat_prompt
    from megatron_ext.rollout.generate import generate
    from megatron_ext.runtime.launch import Launch

    tokenizer = Tokenizer.load(checkpoint / "tokenizer")
    prompt_ids, stop_ids = tokenizer.encode(args.prompt) or [tokenizer.eod_id], frozenset()  # begins after an end
    if args.chat:
        prompt_ids, stop_ids = chat_prompt(checkpoint / "tokenizer", args.prompt)
    with opened_checkpoint(checkpoint, Launch(rank=0, local_rank=0, world_size=1)) as opened:
        new = generate(
            opened.model,
            opened.plan,
            prompt_ids,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
            stop_ids=stop_ids,
        )
    text = tokenizer.decode([token for token in new if token != tokenizer.eod_id and token not in stop_ids])
    print(args.prompt + ("\n\n" if args.chat else "") + text)
    if not text:
        print("the model ended the text at once; try another prompt, or --temperature 0.8", file=sys.stderr)
    return 0


def _require_chat_template(checkpoint: Path) -> None:
    try:
        template_source(checkpoint / "tokenizer", None)
    except DataError:
        raise DataError(
            f"{checkpoint / 'tokenizer'}: holds no chat template, so its stage was not taught to answer; name a "
            "checkpoint of an sft stage, or leave --chat out to have the text continued."
        ) from None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` names: itself, or the newest one of a stage's folder.

    Raises:
        DataError: When there is none.
    """
    if (path / "checkpoints").is_dir():
        complete = checkpoints_of(path / "checkpoints")
        if not complete:
            raise DataError(f"{path}: this stage has no complete checkpoint yet; train it on, then come back.")
        return complete[-1]
    if not (path / "plan.json").is_file():
        there = (
            ", ".join(other.name for other in checkpoints_of(path.parent)) if path.parent.name == "checkpoints" else ""
        )
        remedy = (
            f"there are {there} beside it" if there else "name a folder …/stages/ID or …/stages/ID/checkpoints/step_N"
        )
        raise DataError(f"{path}: not a checkpoint: {remedy}.")
    return path
