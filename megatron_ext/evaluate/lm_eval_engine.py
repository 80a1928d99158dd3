"""A checkpoint opened as the harness's model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from data_tools.progress import shown
from data_tools.tokenizer import describe
from megatron_ext.convert.tokenizer_files import generation_config, token_ids
from megatron_ext.evaluate.continuations import ContinuationScorer
from megatron_ext.evaluate.kept_items import KeptItems
from megatron_ext.evaluate.lm_eval_model import EngineLM, read_tokenizer
from megatron_ext.evaluate.loading import OpenedCheckpoint
from megatron_ext.evaluate.options import Options
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Completion, Prompt, Sampling


@contextlib.contextmanager
def engine_lm(
    opened: OpenedCheckpoint, options: Options, *, items: KeptItems, label: str, requests: int
) -> Iterator[EngineLM]:
    """Our engine as the harness's model, for one task or group.

    All ranks must call this.

    Args:
        opened: The checkpoint; its tokenizer and training length are taken as an export of it has them.
        options: `batch_tokens`, `slots`, `max_length`, `seed`.
        items: Where answers are kept.
        label: Of the task: its answers are kept, and progress is shown, under this name.
        requests: That the task will make on this rank, for the progress; an estimate.
    """
    tokenizer = read_tokenizer(opened.tokenizer_folder)

    def generate(prompts: Sequence[Prompt], sampling: Sampling, keep: Callable[[Completion], None]) -> None:
        room = max(len(prompt.ids) for prompt in prompts) + sampling.max_new_tokens
        engine = InProcessEngine(
            opened.model,
            opened.plan,
            opened.groups,
            num_slots=min(options.slots, sum(prompt.num_samples for prompt in prompts)),
            tokens_per_slot=room,
            decode=tokenizer.decode,
        )
        engine.generate(prompts, sampling, on_finished=keep)

    with shown(label, requests, unit="requests") as progress:
        yield EngineLM(
            tokenizer=tokenizer,
            scorer=ContinuationScorer(opened.model, batch_tokens=options.batch_tokens),
            generate=generate,
            max_length=options.max_length or opened.plan.batch.sequence_length,
            stop_ids=_stop_ids(opened),
            dp_group=opened.groups.dp,
            items=items,
            label=label,
            seed=options.seed,
            on_done=progress.advance,
        )


def _stop_ids(opened: OpenedCheckpoint) -> frozenset[int]:
    """What ends an answer of the exported model: the end of its document, and of its turn where it knows turns."""
    folder = opened.tokenizer_folder
    ends = generation_config(folder, token_ids(folder, describe(folder)))["eos_token_id"]
    return frozenset(ends if isinstance(ends, list) else [ends])
