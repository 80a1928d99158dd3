"""How fast lm-eval's tasks run on our engine: `tests/benchmarks/lm_eval_vs_hf.py [--documents 100] [--batches 1 16]`.

Ratios of the processor seconds of one process with one thread, same tasks, same documents, same weights (random, of
`recipes/models/hybrid_tiny.yaml`), against the harness's own `hf` model over transformers' NemotronHForCausalLM at some
batch sizes: 1 is its default. Both find the same numbers; that is checked on the way. Measured is the call that answers
the requests, tokenization included; building the requests is the harness's own and the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from data_tools.tokenizer import train
from megatron_ext.evaluate.continuations import ContinuationScorer
from megatron_ext.evaluate.kept_items import KeptItems
from megatron_ext.evaluate.lm_eval_model import EngineLM, read_tokenizer
from megatron_ext.models.build import build_model
from megatron_ext.rollout.inprocess import InProcessEngine
from tests.benchmarks.rollout import HYBRID_TINY
from tests.support.harness_tasks import write_tasks
from tests.support.nemotron_h import copy_weights, nemotron_h
from tests.support.one_process import one_process
from tests.support.plans import make_plan

MAX_LENGTH = 1024
VOCAB_SIZE = 4096
TASKS = {
    "add_choice": ("loglikelihood", 5, "four answers of one token, 5-shot"),
    "add_words": ("loglikelihood", 0, "four answers of some tokens, 0-shot"),
    "add_prose": ("loglikelihood_rolling", 0, "whole texts"),
    "add_generate": ("generate_until", 5, "answers of 64 tokens at most, 5-shot"),
}


def main() -> None:
    """Prints a line a task and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100, help="of each task")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 16), help="of the hf model")
    args = parser.parse_args()
    with TemporaryDirectory() as folder, one_process() as groups:
        tasks = write_tasks(Path(folder), documents=args.documents, until=("\n",), new_tokens=64)
        train([Path(folder, "test.jsonl")], "text", VOCAB_SIZE, Path(folder, "tokenizer"))
        tokenizer = read_tokenizer(Path(folder, "tokenizer"))
        plan = make_plan(
            model=HYBRID_TINY,
            model_size={"padded_vocab_size": VOCAB_SIZE},
            data={"tokenizer_vocab_size": len(tokenizer)},
        )
        model = build_model(plan, groups).eval()
        with torch.no_grad():  # training teaches a model not to write ids that its tokenizer does not have
            model.output_layer.weight[len(tokenizer) :] = 0
        theirs = nemotron_h(plan).eval()
        copy_weights(model, theirs, plan)
        theirs.generation_config.eos_token_id = tokenizer.eos_token_id

        def generate(prompts: Any, sampling: Any, keep: Any) -> None:
            room = max(len(prompt.ids) for prompt in prompts) + sampling.max_new_tokens
            engine = InProcessEngine(model, plan, groups, num_slots=32, tokens_per_slot=room, decode=tokenizer.decode)
            engine.generate(prompts, sampling, on_finished=keep)

        ours = EngineLM(
            tokenizer=tokenizer,
            scorer=ContinuationScorer(model, batch_tokens=8192),
            generate=generate,
            max_length=MAX_LENGTH,
            stop_ids=frozenset({tokenizer.eos_token_id}),
            dp_group=groups.dp,
            items=KeptItems(Path(folder), rank=0, lines=[]),
            label="task",
        )
        for name, (kind, num_fewshot, said) in TASKS.items():
            requests = requests_of(tasks, name, num_fewshot)
            answers, seconds = timed(ours, kind, requests)
            print(f"{said}: {len(requests)} requests in {seconds:.2f} s")
            for batch in args.batches:
                hf = HFLM(theirs, tokenizer=tokenizer, max_length=MAX_LENGTH, batch_size=batch)
                expected, their_seconds = timed(hf, kind, requests)
                print(
                    f"  against hf, batch {batch}: {their_seconds / seconds:.1f}x; "
                    f"largest difference {difference(answers, expected)}"
                )


def requests_of(tasks: Path, name: str, num_fewshot: int) -> list[Instance]:
    """What a task asks."""
    task = TaskManager(include_path=str(tasks), include_defaults=False).load([name])["tasks"][name]
    task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests()
    return list(task.instances)


def difference(answers: Any, expected: Any) -> str:
    """Largest one between log-likelihoods, in nats; of texts how many differ."""
    if isinstance(answers[0], str):
        return f"{sum(one != other for one, other in zip(answers, expected, strict=True))} texts"
    pairs = [
        (one[0], other[0]) if isinstance(one, tuple) else (one, other)
        for one, other in zip(answers, expected, strict=True)
    ]
    return f"{max(abs(one - other) for one, other in pairs):.1e} nats"


def timed(model: LM, kind: str, requests: list[Instance]) -> tuple[Any, float]:
    """A model's answers, and processor seconds of its second call."""
    answer = getattr(model, kind)
    with torch.no_grad():
        answer(requests, disable_tqdm=True)
        began = time.process_time()
        found = answer(requests, disable_tqdm=True)
    return found, time.process_time() - began


if __name__ == "__main__":
    main()
