"""What the in-process engine promises, on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import SetupError, UsageError
from megatron_ext.models.build import build_model
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Completion, Prompt, Sampling
from megatron_ext.rollout.sampling_run import NonFiniteLogitsError
from tests.support.one_process import strengthen
from tests.support.plans import make_plan
from tests.support.rollout import prompts_of

PLAN = make_plan()
SAMPLED = Sampling(12, temperature=1.0)
GREEDY = Sampling(12, temperature=0.0)


@pytest.fixture(scope="module")
def model(groups: ProcessGroupCollection) -> HybridModel:
    return strengthen(build_model(PLAN, groups))


def letters(ids: Sequence[int]) -> str:
    """Every id as two letters, so that strings can begin inside one."""
    return "".join(chr(97 + i // 26) + chr(97 + i % 26) for i in ids)


@pytest.fixture(scope="module")
def engine(model: HybridModel, groups: ProcessGroupCollection) -> InProcessEngine:
    return InProcessEngine(model, PLAN, groups, num_slots=4, tokens_per_slot=40, decode=letters)


def test_completions_come_by_prompt_and_sample(engine: InProcessEngine) -> None:
    completions = engine.generate(prompts_of((3, 9, 3), num_samples=2), SAMPLED)
    keys = [(completion.prompt_index, completion.sample_index) for completion in completions]
    assert keys == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(len(completion.log_probs) == len(completion.token_ids) == 12 for completion in completions)


def test_a_sample_is_the_same_whatever_is_sampled_beside_it(
    engine: InProcessEngine, model: HybridModel, groups: ProcessGroupCollection
) -> None:
    """Samples end at lengths of their own, so that slots are refilled and moved."""
    prompts = prompts_of((5, 8, 5, 2, 11), num_samples=3)
    sampling = replace(SAMPLED, stop_ids=frozenset(range(12)))
    together = engine.generate(prompts, sampling)
    assert len({len(completion.token_ids) for completion in together}) > 3
    one_slot = InProcessEngine(model, PLAN, groups, num_slots=1, tokens_per_slot=40)
    backwards = engine.generate(prompts[::-1], sampling)
    for completion in together:
        prompt = prompts[completion.prompt_index]
        alone = one_slot.generate([prompt], sampling)[completion.sample_index]
        assert completion.token_ids == alone.token_ids
        place = (len(prompts) - 1 - completion.prompt_index) * 3 + completion.sample_index
        assert completion.token_ids == backwards[place].token_ids


def test_the_same_seed_gives_the_same_sample_and_another_seed_another(engine: InProcessEngine) -> None:
    prompt = Prompt((5, 6, 7), num_samples=2, seed=3)
    first, again = engine.generate([prompt], SAMPLED), engine.generate([prompt], SAMPLED)
    assert first == again
    assert first[0].token_ids != first[1].token_ids
    assert engine.generate([replace(prompt, seed=4)], SAMPLED)[0].token_ids != first[0].token_ids


def test_samples_of_a_prompt_share_one_reading_also_where_slots_are_few(engine: InProcessEngine) -> None:
    before = engine.health().prompt_tokens
    completions = engine.generate([Prompt((5, 6, 7), num_samples=9), Prompt((8, 9, 10), num_samples=2)], SAMPLED)
    assert len(completions) == 11
    assert engine.health().prompt_tokens - before == 6


def test_a_stop_id_ends_a_completion_and_belongs_to_it(engine: InProcessEngine) -> None:
    (whole,) = engine.generate([Prompt((5, 6, 7))], GREEDY)
    stop = whole.token_ids[4]
    (cut,) = engine.generate([Prompt((5, 6, 7))], replace(GREEDY, stop_ids=frozenset({stop})))
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert (whole.finish, cut.finish) == ("length", "stop")


def test_a_stop_string_ends_a_completion_across_token_borders(engine: InProcessEngine) -> None:
    (whole,) = engine.generate([Prompt((5, 6, 7))], GREEDY)
    text = letters(whole.token_ids)
    string = text[7:10]  # the second letter of token 3 and both of token 4
    (cut,) = engine.generate([Prompt((5, 6, 7))], replace(GREEDY, stop_strings=(string,)))
    last = next(n for n in range(1, 13) if string in letters(whole.token_ids[:n]))
    assert cut.token_ids == whole.token_ids[:last]
    assert cut.finish == "stop"


def test_a_completion_that_reaches_the_end_of_its_slot_ends_there(engine: InProcessEngine) -> None:
    (completion,) = engine.generate(prompts_of((35,)), Sampling(12))
    assert (len(completion.token_ids), completion.finish) == (5, "length")


def test_a_sample_that_ends_with_its_first_token_frees_its_slot_at_once(engine: InProcessEngine) -> None:
    completions = engine.generate(prompts_of((3, 5, 3), num_samples=4), Sampling(1))
    assert [len(completion.token_ids) for completion in completions] == [1] * 12


def test_each_completion_is_handed_over_as_it_ends(engine: InProcessEngine) -> None:
    (whole,) = engine.generate([Prompt((5, 6, 7))], GREEDY)
    sampling = replace(GREEDY, stop_ids=frozenset({whole.token_ids[2]}))
    seen: list[Completion] = []
    completions = engine.generate([*prompts_of((9,)), Prompt((5, 6, 7))], sampling, on_finished=seen.append)
    assert seen == [completions[1], completions[0]]


def test_completions_carry_the_version_of_the_policy(engine: InProcessEngine) -> None:
    engine.load_weights(policy_version=7)
    assert engine.generate(prompts_of((3,)), SAMPLED)[0].policy_version == 7
    assert engine.health().policy_version == 7


def test_changed_weights_are_sampled_from_at_once(
    engine: InProcessEngine, model: HybridModel, groups: ProcessGroupCollection
) -> None:
    before = engine.generate(prompts_of((3,)), GREEDY)[0].token_ids
    saved = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.full_like(parameter, 0.1))
    fresh = InProcessEngine(model, PLAN, groups, num_slots=2, tokens_per_slot=40)
    (changed,) = engine.generate(prompts_of((3,)), GREEDY)
    (expected,) = fresh.generate(prompts_of((3,)), GREEDY)  # of its first policy
    assert replace(changed, policy_version=expected.policy_version) == expected  # log-probabilities to the bit
    assert changed.token_ids != before
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(saved[name])


def test_a_model_in_training_mode_stays_in_it_and_can_train(engine: InProcessEngine, model: HybridModel) -> None:
    model.train()
    engine.generate(prompts_of((3,)), SAMPLED)
    assert model.training
    tokens = torch.tensor([[5, 6, 7]])
    model(tokens, torch.arange(3)[None], None, labels=tokens).sum().backward()


def test_nan_logits_name_prompt_sample_and_token_and_lose_nothing(engine: InProcessEngine, model: HybridModel) -> None:
    """Four slots: the short one ends, then an embedding that only the long one will read becomes NaN."""
    prompts = prompts_of((6, 3))
    long, short = engine.generate(prompts, GREEDY)
    sampling = replace(GREEDY, stop_ids=frozenset({short.token_ids[0]}))
    place, token = next(
        (i, t)
        for i, t in enumerate(long.token_ids)
        if i > 0 and t not in (*prompts[0].ids, *prompts[1].ids, *long.token_ids[:i], short.token_ids[0])
    )
    words, kept = model.embedding.word_embeddings.weight, []
    saved = words[token].detach().clone()
    with torch.no_grad():
        words[token] = torch.nan
    try:
        with pytest.raises(
            NonFiniteLogitsError, match=f"prompt 0, sample 0, new token {place + 1}: .* not fin"
        ) as caught:
            engine.generate(prompts, sampling, on_finished=kept.append)
    finally:
        with torch.no_grad():
            words[token] = saved
    assert caught.value.completions == kept
    assert [completion.prompt_index for completion in kept] == [1]
    left = [state for layer in engine._cache.layers for state in layer]
    assert all(bool(state.isfinite().all()) for state in left), "NaN was left for the next texts"
    assert engine.generate(prompts, GREEDY) == [long, short]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(()), "prompt 1: 0 tokens: it needs at least one"),
        (Prompt((120,)), r"prompt 1: 1 tokens: .* all ids in \[0, 120\)"),
        (Prompt((1,) * 40), "prompt 1: 40 tokens leave no room for a new one among the 40 of a slot"),
        (Prompt((1,), num_samples=0), "prompt 1: num_samples: 0: must be at least 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_is(
    engine: InProcessEngine, prompt: Prompt, message: str
) -> None:
    seen: list[Completion] = []
    with pytest.raises(UsageError, match=message):
        engine.generate([Prompt((1, 2)), prompt], SAMPLED, on_finished=seen.append)
    assert seen == []


def test_stop_strings_without_a_tokenizer_are_refused(model: HybridModel, groups: ProcessGroupCollection) -> None:
    mute = InProcessEngine(model, PLAN, groups, num_slots=1, tokens_per_slot=40)
    with pytest.raises(UsageError, match="stop_strings: .* needs the tokenizer's `decode`"):
        mute.generate([Prompt((1,))], replace(SAMPLED, stop_strings=("a",)))


def test_a_layout_that_cannot_sample_is_refused_with_its_key(
    model: HybridModel, groups: ProcessGroupCollection
) -> None:
    piped = make_plan(layout={"pipeline_model_parallel_size": 2})
    with pytest.raises(SetupError, match=r"parallel\.pipeline_model_parallel_size: 2: sampling needs 1"):
        InProcessEngine(model, piped, groups, num_slots=1, tokens_per_slot=40)


def test_a_cache_takes_the_bytes_that_the_plan_counts(engine: InProcessEngine) -> None:
    from megatron_ext.plan.rollout import rollout_bytes

    counted = rollout_bytes(PLAN.model, PLAN.layout, num_slots=4, tokens_per_slot=40, precision="fp32")
    assert engine.health().cache_bytes == counted.cache
