"""The harness finds the same numbers on our engine as with its own `hf` model on the same weights.

Log-likelihoods within 2e-4 where they are some tens of nats: sums of up to 60 float32 log-probabilities, each of
logits that agree to 2e-5 (test_hybrid_vs_nemotron_h.py). Accuracies and answers are equal, not close.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from data_tools.tokenizer import train
from megatron_ext.evaluate.continuations import ContinuationScorer
from megatron_ext.evaluate.kept_items import KeptItems
from megatron_ext.evaluate.lm_eval_model import EngineLM, read_tokenizer
from megatron_ext.models.build import build_model
from megatron_ext.rollout.inprocess import InProcessEngine
from tests.support.harness_tasks import Pair, both, write_tasks
from tests.support.nemotron_h import copy_weights, nemotron_h
from tests.support.one_process import one_process, strengthen
from tests.support.plans import make_plan

TOLERANCE_NATS = 2e-4
MAX_LENGTH = 96
VOCAB_SIZE = 384


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("harness"), until=("\n", "4", "H", "A"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tasks: Path) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("tokenizer")
    train([tasks.parent / "train.jsonl"], "text", VOCAB_SIZE, folder)
    tokenizer = read_tokenizer(folder)
    plan = make_plan(
        model={"hybrid_layer_pattern": "M-*M-", "vocab_size": len(tokenizer)},
        model_size={"padded_vocab_size": len(tokenizer)},
        data={"tokenizer_vocab_size": len(tokenizer)},
    )
    with one_process() as groups:
        model = strengthen(build_model(plan, groups)).eval()
        theirs = nemotron_h(plan, chunk_size=16).eval()
        copy_weights(model, theirs, plan)
        theirs.generation_config.eos_token_id = tokenizer.eos_token_id

        def generate(prompts: Any, sampling: Any, keep: Any) -> None:
            room = max(len(prompt.ids) for prompt in prompts) + sampling.max_new_tokens
            engine = InProcessEngine(model, plan, groups, num_slots=4, tokens_per_slot=room, decode=tokenizer.decode)
            engine.generate(prompts, sampling, on_finished=keep)

        ours = EngineLM(
            tokenizer=tokenizer,
            scorer=ContinuationScorer(model, batch_tokens=512),
            generate=generate,
            max_length=MAX_LENGTH,
            stop_ids=frozenset({tokenizer.eos_token_id}),
            dp_group=groups.dp,
            items=KeptItems(folder, rank=0, lines=[]),
            label="task",
        )
        yield ours, HFLM(theirs, tokenizer=tokenizer, max_length=MAX_LENGTH, batch_size=4)


@pytest.mark.parametrize("num_fewshot", [0, 3])
@pytest.mark.parametrize("name", ["add_choice", "add_words"])
def test_multiple_choice_finds_the_same_likelihoods(pair: Pair, tasks: Path, name: str, num_fewshot: int) -> None:
    ours, theirs = both(pair, tasks, name, num_fewshot=num_fewshot)
    assert ours["results"][name] == theirs["results"][name]
    mine, other = ours["samples"][name], theirs["samples"][name]
    assert len(mine) == len(other) == 12
    for one, another in zip(mine, other, strict=True):
        assert one["arguments"] == another["arguments"]
        for (score, greedy), (expected, is_greedy) in zip(
            one["filtered_resps"], another["filtered_resps"], strict=True
        ):
            assert score == pytest.approx(expected, abs=TOLERANCE_NATS)
            assert greedy == is_greedy


def test_rolling_likelihoods_are_the_same_in_one_window_and_in_several(pair: Pair, tasks: Path) -> None:
    ours, theirs = both(pair, tasks, "add_prose")
    mine, other = ours["samples"]["add_prose"], theirs["samples"]["add_prose"]
    assert [one["filtered_resps"][0] for one in mine] == pytest.approx(
        [one["filtered_resps"][0] for one in other], abs=TOLERANCE_NATS
    )
    assert ours["results"]["add_prose"]["bits_per_byte,none"] == pytest.approx(
        theirs["results"]["add_prose"]["bits_per_byte,none"], rel=1e-6
    )


@pytest.mark.parametrize("num_fewshot", [0, 1, 4])
def test_answers_are_the_same_text(pair: Pair, tasks: Path, num_fewshot: int) -> None:
    ours, theirs = both(pair, tasks, "add_generate", num_fewshot=num_fewshot)
    mine, other = (found["samples"]["add_generate"] for found in (ours, theirs))
    assert [one["filtered_resps"] for one in mine] == [one["filtered_resps"] for one in other]
    assert len({one["filtered_resps"][0] for one in mine}) > 3, "answers that are all alike would show nothing"
    assert ours["results"]["add_generate"] == theirs["results"]["add_generate"]


@pytest.mark.parametrize("name", ["add_choice", "add_generate"])
def test_a_chat_is_rendered_and_answered_alike(pair: Pair, tasks: Path, name: str) -> None:
    ours, theirs = both(pair, tasks, name, num_fewshot=1, apply_chat_template=True)
    mine, other = ours["samples"][name], theirs["samples"][name]
    assert "<|im_start|>user" in mine[0]["arguments"][0][0]
    for one, another in zip(mine, other, strict=True):
        assert one["arguments"] == another["arguments"]
        for answer, expected in zip(one["filtered_resps"], another["filtered_resps"], strict=True):
            assert answer == (expected if name == "add_generate" else pytest.approx(expected, abs=TOLERANCE_NATS))
