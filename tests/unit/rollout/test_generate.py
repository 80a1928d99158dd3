"""One prompt continued, and where it stops."""

from __future__ import annotations

import pytest
import torch
from megatron.core.inference.utils import InferenceMode
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import UsageError
from megatron_ext.models.build import build_model
from megatron_ext.rollout.generate import generate
from tests.support.one_process import logits_of, strengthen
from tests.support.plans import make_plan

PLAN = make_plan(data={"eod_id": 119})
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def model(groups: ProcessGroupCollection) -> HybridModel:
    return strengthen(build_model(PLAN, groups))


def test_the_same_seed_gives_the_same_text(model: HybridModel) -> None:
    texts = [generate(model, PLAN, PROMPT, max_new_tokens=20, temperature=1.0, seed=seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_ids_beyond_the_tokenizer_are_never_chosen(model: HybridModel) -> None:
    with torch.no_grad():
        saved = model.output_layer.weight.clone()
        model.output_layer.weight[120:] *= 1000  # the padding gets the extreme logits
    hot = generate(model, PLAN, PROMPT, max_new_tokens=50, temperature=5.0, seed=0)
    with torch.no_grad():
        model.output_layer.weight.copy_(saved)
    assert max(hot) < 120


def test_generation_ends_with_the_end_of_document(model: HybridModel) -> None:
    greedy = generate(model, PLAN, PROMPT, max_new_tokens=12)
    end = greedy[4]
    stopping = make_plan(data={"eod_id": end})
    assert generate(model, stopping, PROMPT, max_new_tokens=12) == greedy[: greedy.index(end) + 1]


def test_generation_ends_after_max_new_tokens(model: HybridModel) -> None:
    assert len(generate(model, make_plan(data={"eod_id": 120}), PROMPT, max_new_tokens=7)) == 7


def test_a_model_in_training_mode_stays_in_it_and_can_train(model: HybridModel) -> None:
    model.train()
    generate(model, PLAN, PROMPT, max_new_tokens=3)
    assert model.training
    assert not InferenceMode.is_active()
    model(torch.tensor([PROMPT]), torch.arange(3)[None], None, labels=torch.tensor([PROMPT])).sum().backward()


def test_a_second_prompt_starts_from_nothing(model: HybridModel) -> None:
    generate(model, PLAN, [9] * 30, max_new_tokens=5)
    first = generate(model, PLAN, PROMPT, max_new_tokens=1)
    assert first == [int(logits_of(model, torch.tensor([PROMPT]))[0, -1, :120].argmax())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_ids": []}, "prompt 0: 0 tokens: it needs at least one"),
        ({"prompt_ids": [120]}, r"all ids in \[0, 120\)"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0: must be at least 1"),
        ({"temperature": -0.5}, "temperature: -0.5: must be at least 0"),
        ({"top_k": -1}, "top_k: -1: must be at least 0"),
        ({"top_p": 0.0}, r"top_p: 0.0: must be in \(0, 1\]"),
    ],
)
def test_arguments_outside_their_range_are_refused(
    model: HybridModel, options: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"prompt_ids": PROMPT, "max_new_tokens": 4} | options
    with pytest.raises(UsageError, match=message):
        generate(model, PLAN, **arguments)  # type: ignore[arg-type]


def test_more_tokens_can_end_the_text(model: HybridModel) -> None:
    whole = generate(model, PLAN, PROMPT, max_new_tokens=6)
    stop = whole[2]
    assert generate(model, PLAN, PROMPT, max_new_tokens=6, stop_ids={stop}) == whole[: whole.index(stop) + 1]
