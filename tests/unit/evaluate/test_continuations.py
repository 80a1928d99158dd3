"""Scores are sums of log-probabilities of the tokens asked for, whatever stands beside them in a pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel

from megatron_ext.evaluate import continuations
from megatron_ext.evaluate.continuations import Continuation, ContinuationScorer, Score, passes_of
from megatron_ext.models.build import build_model
from tests.support.one_process import logits_of, one_process, random_tokens, strengthen
from tests.support.plans import make_plan


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> Iterator[HybridModel]:
    plan = make_plan(model={"share_embeddings_and_output_weights": request.param})
    with one_process() as groups:
        yield strengthen(build_model(plan, groups)).eval()


def expected(model: HybridModel, one: Continuation) -> tuple[float, bool]:
    """From the logits of the text alone, in float64."""
    logits = logits_of(model, torch.tensor([one.ids[:-1]]))[0, -one.num_scored :].double()
    ids = torch.tensor(one.ids[-one.num_scored :])
    log_probs = logits.log_softmax(-1)[torch.arange(len(ids)), ids]
    return float(log_probs.sum()), bool((logits.argmax(-1) == ids).all())


def score_all(scorer: ContinuationScorer, asked: list[Continuation]) -> list[Score]:
    """Pass by pass, in the order asked."""
    found = {}
    for one in scorer.passes(asked):
        found.update(zip(one, scorer.score([asked[index] for index in one]), strict=True))
    return [found[index] for index in range(len(asked))]


def texts(model: HybridModel) -> list[Continuation]:
    """Of several lengths, unsorted; the last one goes on with what the model likes best, the one before it half so."""
    rows = [tuple(random_tokens(1, length, seed=length)[0].tolist()) for length in (5, 30, 2, 17, 9)]
    found = [Continuation(ids, num_scored) for ids, num_scored in zip(rows, (1, 7, 1, 16, 3), strict=True)]
    likeliest = int(logits_of(model, torch.tensor([rows[0]]))[0, -1].argmax())
    unlikely = int(logits_of(model, torch.tensor([(*rows[0], likeliest)]))[0, -1].argmin())
    return [*found, Continuation((*rows[0], likeliest, unlikely), 2), Continuation((*rows[0], likeliest), 1)]


def test_a_text_scores_as_it_does_alone(model: HybridModel) -> None:
    asked = texts(model)
    found = score_all(ContinuationScorer(model, batch_tokens=1000), asked)
    for score, one in zip(found, asked, strict=True):
        log_prob, is_greedy = expected(model, one)
        assert score.log_prob == pytest.approx(log_prob, abs=1e-4)
        assert score.is_greedy == is_greedy
    assert [score.is_greedy for score in found][-2:] == [False, True]


@pytest.mark.parametrize("batch_tokens", [1, 40, 1000])
def test_scores_do_not_depend_on_the_size_of_a_pass(model: HybridModel, batch_tokens: int) -> None:
    asked = texts(model)
    one_pass = score_all(ContinuationScorer(model, batch_tokens=10_000), asked)
    found = score_all(ContinuationScorer(model, batch_tokens=batch_tokens), asked)
    assert [score.log_prob for score in found] == pytest.approx([score.log_prob for score in one_pass], abs=1e-4)


def test_logits_in_parts_give_the_same_scores(model: HybridModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = texts(model)
    whole = score_all(ContinuationScorer(model, batch_tokens=1000), asked)
    monkeypatch.setattr(continuations, "LOGIT_TOKENS", 3)
    parts = score_all(ContinuationScorer(model, batch_tokens=1000), asked)
    assert [score.log_prob for score in parts] == pytest.approx([score.log_prob for score in whole], abs=1e-5)
    assert [score.is_greedy for score in parts] == [score.is_greedy for score in whole]


def test_answers_of_one_token_to_one_question_are_read_once(model: HybridModel) -> None:
    question = tuple(random_tokens(1, 20, seed=3)[0].tolist())
    scorer = ContinuationScorer(model, batch_tokens=1000)
    found = score_all(scorer, [Continuation((*question, answer), 1) for answer in range(4)])
    assert scorer.read_tokens == 20
    for answer, score in enumerate(found):
        assert score.log_prob == pytest.approx(expected(model, Continuation((*question, answer), 1))[0], abs=1e-5)


def test_passes_hold_texts_of_about_one_length(model: HybridModel) -> None:
    lengths = [3, 50, 4, 49, 5, 48]
    asked = [Continuation(tuple(random_tokens(1, length + 1, seed=length)[0].tolist()), 1) for length in lengths]
    scorer = ContinuationScorer(model, batch_tokens=150)  # 50 + 49 + 48, then 5 + 4 + 3
    assert scorer.passes(asked) == [[1, 3, 5], [4, 2, 0]]
    score_all(scorer, asked)
    assert scorer.read_tokens == 3 * 50 + 3 * 5
    assert scorer.padding_tokens == 1 + 2 + 1 + 2


def test_every_text_goes_once_through_the_model_in_passes_no_larger_than_asked() -> None:
    lengths = [5, 2, 8, 3, 3]
    passes = passes_of(lengths, batch_tokens=10)
    assert [[lengths[index] for index in one] for one in passes] == [[8], [5, 3], [3, 2]]
    assert sorted(index for one in passes for index in one) == [0, 1, 2, 3, 4]


def test_a_text_longer_than_a_pass_goes_alone() -> None:
    assert passes_of([9, 9], batch_tokens=4) == [[0], [1]]
