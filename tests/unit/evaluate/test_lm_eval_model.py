"""What the harness asks reaches the engine as it should: truncation counted, ways of sampling told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from data_tools.errors import UsageError
from data_tools.tokenizer import train
from megatron_ext.evaluate.continuations import ContinuationScorer
from megatron_ext.evaluate.kept_items import KeptItems, lines_on_disk
from megatron_ext.evaluate.lm_eval_model import EngineLM, read_tokenizer
from megatron_ext.models.build import build_model
from megatron_ext.rollout.protocol import Completion, Prompt, Sampling
from tests.support.one_process import one_process
from tests.support.plans import make_plan

MAX_LENGTH = 20


class Echo:
    """An engine whose answers are numbered letters, and that keeps what it was asked."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.asked: list[tuple[Sequence[Prompt], Sampling]] = []

    def __call__(self, prompts: Sequence[Prompt], sampling: Sampling, keep: Callable[[Completion], None]) -> None:
        self.asked.append((prompts, sampling))
        for index, prompt in enumerate(prompts):
            for j in range(prompt.first_sample, prompt.first_sample + prompt.num_samples):
                keep(Completion(index, j, tuple(self.tokenizer.encode(f"{'abc'[j]} stop")), (), "stop", 0))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.jsonl"
    text.write_text('{"text": "a b c"}\n')
    train([text], "text", 300, folder / "tok")
    return read_tokenizer(folder / "tok")


@pytest.fixture
def lm(tokenizer: Any, tmp_path: Path) -> Iterator[EngineLM]:
    plan = make_plan(model={"vocab_size": 384}, model_size={"padded_vocab_size": 384})
    with one_process() as groups:
        yield EngineLM(
            tokenizer=tokenizer,
            scorer=ContinuationScorer(build_model(plan, groups).eval(), batch_tokens=500),
            generate=Echo(tokenizer),
            max_length=MAX_LENGTH,
            stop_ids=frozenset({tokenizer.eos_token_id}),
            dp_group=groups.dp,
            items=KeptItems(tmp_path, rank=0, lines=[]),
            label="task",
        )


def request(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def generate(lm: EngineLM, *asked: tuple[str, dict[str, Any]]) -> list[str]:
    return lm.generate_until([request("generate_until", *one) for one in asked])


def test_a_context_that_comes_three_times_is_read_once_and_sampled_three_times(lm: EngineLM) -> None:
    how = {"until": [" stop"], "do_sample": True, "temperature": 0.7, "max_gen_toks": 4}
    answers = generate(lm, ("x", how), ("y", how), ("x", how), ("x", how))
    assert answers == ["a", "a", "b", "c"]
    ((prompts, sampling),) = lm.generate.asked
    assert [prompt.num_samples for prompt in prompts] == [3, 1]
    assert prompts[0].seed != prompts[1].seed
    assert (sampling.temperature, sampling.max_new_tokens) == (0.7, 4)
    assert sampling.stop_strings == (" stop", "<|endoftext|>")


def test_requests_of_other_ways_of_sampling_go_apart(lm: EngineLM) -> None:
    first, second = {"until": ["a"], "max_gen_toks": 3}, {"until": ["b"], "max_gen_toks": 3}
    generate(lm, ("x", first), ("x", second), ("y", first))
    assert [len(prompts) for prompts, _ in lm.generate.asked] == [2, 1]


@pytest.mark.parametrize(
    ("how", "temperature"),
    [({}, 0.0), ({"do_sample": False, "temperature": 0.7}, 0.0), ({"temperature": 0.7}, 0.7)],
)
def test_sampling_is_read_as_the_hf_model_reads_it(lm: EngineLM, how: dict[str, Any], temperature: float) -> None:
    generate(lm, ("x", {"until": ["."], "max_gen_toks": 3} | how))
    assert lm.generate.asked[0][1].temperature == temperature


def test_a_key_that_the_engine_does_not_know_is_refused(lm: EngineLM) -> None:
    with pytest.raises(UsageError, match="generation_kwargs: num_beams: this engine knows do_sample, max_gen_toks, "):
        generate(lm, ("x", {"until": ["."], "num_beams": 4}))


def test_sampling_without_a_temperature_is_refused(lm: EngineLM) -> None:
    with pytest.raises(UsageError, match="do_sample: true: needs a temperature above 0"):
        generate(lm, ("x", {"until": ["."], "do_sample": True, "max_gen_toks": 3}))


def test_an_answer_that_leaves_no_room_for_a_question_is_refused(lm: EngineLM) -> None:
    with pytest.raises(UsageError, match="max_gen_toks: 20: leaves no room for a question among the model's 20"):
        generate(lm, ("x", {"until": ["."], "max_gen_toks": MAX_LENGTH}))


def test_a_question_that_is_too_long_loses_its_beginning_and_is_counted(lm: EngineLM) -> None:
    generate(lm, ("0123456789", {"until": ["."], "max_gen_toks": 15}), ("x", {"until": ["."], "max_gen_toks": 15}))
    (prompts, _) = lm.generate.asked[0]
    assert lm.tokenizer.decode(list(prompts[0].ids)) == "56789"
    assert (lm.cuts.shortened_contexts, lm.cuts.dropped_tokens) == (1, 5)
    assert lm.cuts.notes(MAX_LENGTH) == [
        "1 contexts were longer than the model's 20 tokens allow and lost 5 tokens at their beginning, as with "
        "lm-eval's hf model"
    ]


def test_a_likelihood_whose_context_is_too_long_is_that_of_its_end(lm: EngineLM) -> None:
    # 21 tokens of context and 2 of continuation are 2 more than the 21 that fit: the last is predicted, not read.
    (long,) = lm.loglikelihood([request("loglikelihood", "xy" + "1" * 19, "ab")])
    assert (lm.cuts.shortened_contexts, lm.cuts.dropped_tokens) == (1, 2)
    (short,) = lm.loglikelihood([request("loglikelihood", "1" * 19, "ab")])
    assert long == short
    assert lm.cuts.shortened_contexts == 1


def test_a_continuation_longer_than_the_model_is_refused(lm: EngineLM) -> None:
    with pytest.raises(UsageError, match="a continuation of 21 tokens: must have at least 1 and fit the model's 20"):
        lm.loglikelihood([request("loglikelihood", "x", "1" * 21)])


def test_a_text_longer_than_the_model_is_read_in_windows_and_counted(lm: EngineLM) -> None:
    short, _long = lm.loglikelihood_rolling([request("loglikelihood_rolling", "1" * n) for n in (20, 21)])
    assert lm.cuts.split_texts == 1
    assert lm.cuts.dropped_tokens == 0
    (again,) = lm.loglikelihood([request("loglikelihood", "", "1" * 20)])
    assert short == pytest.approx(again[0])


def test_a_text_without_context_stands_behind_the_end_of_a_document(lm: EngineLM) -> None:
    assert lm.prefix_token_id == lm.tokenizer.eos_token_id
    (found,) = lm.loglikelihood([request("loglikelihood", "", "ab")])
    (same,) = lm.loglikelihood([request("loglikelihood", "<|endoftext|>", "ab")])
    assert found[0] == pytest.approx(same[0])


def going_on(lm: EngineLM) -> EngineLM:
    """The same one in a run that goes on from what the first has kept."""
    folder = lm.items.folder
    lm.items.close()
    return replace(lm, items=KeptItems(folder, rank=0, lines=lines_on_disk(folder)[0]), generate=Echo(lm.tokenizer))


def test_answers_that_are_kept_are_not_sampled_again(lm: EngineLM) -> None:
    how = {"until": [" stop"], "do_sample": True, "temperature": 0.7, "max_gen_toks": 4}
    generate(lm, ("x", how), ("y", how))
    again = going_on(lm)
    assert generate(again, ("x", how), ("z", how), ("x", how), ("y", how)) == ["a", "a", "b", "a"]
    ((prompts, _),) = again.generate.asked
    assert [(prompt.first_sample, prompt.num_samples) for prompt in prompts] == [(1, 1), (0, 1)]  # x again, and z
    assert generate(going_on(again), ("x", how), ("z", how)) == ["a", "a"]


def test_another_way_of_sampling_is_another_request(lm: EngineLM) -> None:
    generate(lm, ("x", {"until": ["a"], "max_gen_toks": 3}))
    again = going_on(lm)
    generate(again, ("x", {"until": ["a"], "max_gen_toks": 4}))
    assert len(again.generate.asked) == 1


def test_likelihoods_that_are_kept_are_not_computed_again(lm: EngineLM) -> None:
    asked = [request("loglikelihood", "x" * n, "ab") for n in (1, 5, 9)]
    first = lm.loglikelihood(asked)
    read = lm.scorer.read_tokens
    assert read > 0
    again = going_on(lm)
    assert again.loglikelihood(asked) == first
    assert lm.scorer.read_tokens == read
    (rolling,) = again.loglikelihood_rolling([request("loglikelihood_rolling", "x" * 30)])
    assert going_on(again).loglikelihood_rolling([request("loglikelihood_rolling", "x" * 30)]) == [rolling]
    assert lm.scorer.read_tokens == read + 2 * 20  # two windows in one pass, once


def test_a_pass_of_which_something_is_missing_is_computed_whole_and_gives_the_same_bits(lm: EngineLM) -> None:
    asked = [request("loglikelihood", "x" * n, "ab") for n in (1, 5, 9)]
    whole = lm.loglikelihood(asked)
    read = lm.scorer.read_tokens
    lm.items.close()
    file = next(lm.items.folder.glob("*.jsonl"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:1]))  # what a kill has left
    assert going_on(lm).loglikelihood(asked) == whole
    assert lm.scorer.read_tokens == 2 * read
    assert len(file.read_text().splitlines()) == 3
