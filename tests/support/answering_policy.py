r"""A policy whose answers are known: a token alone decides what follows it.

    follow(parts, chains(tokenizer, last, [r"\boxed{3}", r"\boxed{4}"]))

Weights of a trained model are overwritten: the embeddings of these tokens become axes, the output layer leads each axis
to its followers, and what the blocks add is made as small as is wanted. Other tokens keep what they had in other axes.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from data_tools.tokenizer import Tokenizer
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.checkpoint import load_checkpoint
from megatron_ext.training.file_list import checkpoints_of, read_plan
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.saving import CheckpointWrite
from tests.support.distributed import run_distributed
from tests.support.toy_project import Run, ToyProject

END = "<|im_end|>"

_STRENGTH = 10.0
"""Of the output layer: 80 nats for a follower in the toy's 64 dimensions, before what the blocks add."""


def chains(tokenizer: Tokenizer, prompt: str, answers: Sequence[str]) -> dict[int, list[int]]:
    """Followers of each token, so that any of some answers comes behind a prompt, and the end behind each.

    Args:
        tokenizer: Of the model.
        prompt: How every prompt ends.
        answers: Of tokens that come once, and have the same followers or part for good.
    """
    first, (end,) = tokenizer.encode(prompt)[-1], tokenizer.encode(END)
    after: dict[int, list[int]] = {}
    for answer in answers:
        for token, follower in itertools.pairwise([first, *tokenizer.encode(answer), end]):
            followers = after.setdefault(int(token), [])
            if follower not in followers:
                followers.append(int(follower))
    return after


@torch.no_grad()
def follow(parts: Parts, after: Mapping[int, Sequence[int]], *, blocks: float = 0.0) -> None:
    """Lets the tokens of `after` be followed by one of theirs, each as likely as the other without the blocks.

    Args:
        parts: Of one rank.
        after: The followers of a token.
        blocks: What is left of the blocks' part of the sum that the output layer sees.
    """
    model = parts.model.module
    for name, parameter in model.named_parameters():
        if name.endswith(("out_proj.weight", "linear_proj.weight", "linear_fc2.weight")):
            parameter.mul_(blocks)
    embedding, output = model.embedding.word_embeddings.weight, model.output_layer.weight
    embedding[:, : len(after)] = 0.0
    embedding[list(after)] = 0.0
    output[:, : len(after)] = 0.0
    for place, (token, followers) in enumerate(after.items()):
        embedding[token, place] = 1.0
        output[list(followers), place] = _STRENGTH
    parts.optimizer.reload_model_params()


def teach(project: ToyProject, base: Run, answers: Sequence[str], *, prompt: str, blocks: float = 0.0) -> None:
    """Puts such weights into the last checkpoint of a finished stage."""
    run_distributed(_teach, 1, project.root, base.stage_folder, tuple(answers), prompt, blocks)


def _teach(root: Path, stage_folder: Path, answers: Sequence[str], prompt: str, blocks: float) -> None:
    os.chdir(root)
    checkpoint = checkpoints_of(stage_folder / "checkpoints")[-1]
    plan = read_plan(checkpoint)
    with process_groups(Launch.from_environment()) as groups:
        parts = make_parts(plan, groups)
        state = load_checkpoint(checkpoint, parts)
        tokenizer = Tokenizer.load(checkpoint / "tokenizer", special_tokens="parse")
        follow(parts, chains(tokenizer, prompt, answers), blocks=blocks)
        shutil.rmtree(checkpoint)
        CheckpointWrite(checkpoint.parent, parts, state).finish()
