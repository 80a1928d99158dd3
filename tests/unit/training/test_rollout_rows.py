"""Completions become rows: what is trained on, with which weights, and where it came from."""

from __future__ import annotations

import pytest

from data_tools.errors import TrainingError
from data_tools.prompts import PromptRow
from megatron_ext.datasets.prompts import DrawnPrompt
from megatron_ext.objectives.rewards import RewardParts
from megatron_ext.objectives.rl import RlOptions
from megatron_ext.rollout.protocol import Completion
from megatron_ext.training.mismatch import Mismatch, require_agreement
from megatron_ext.training.rollout_groups import Group, Scored, facts_of, make_groups
from megatron_ext.training.rollout_rows import make_row, pack_pieces, pieces_of
from megatron_ext.training.validate import _with_interval

OPTIONS = RlOptions(max_new_tokens=4, aggregation="token", advantage="mean")


def group(prompt: tuple[int, ...], *answers: tuple[tuple[int, ...], float], place: int = 0) -> Group:
    """A group of completions: their tokens and rewards; those of four tokens were cut off."""
    record = {"id": f"p{place}", "prompt": [], "reward_model": {"ground_truth": "1"}, "meta_data": {}}
    drawn = DrawnPrompt(PromptRow(f"{place:032x}", "math", "", record, prompt), 0, place, 0)
    scored = [
        Scored(
            Completion(0, number, ids, tuple(-float(one) for one in ids), "length" if len(ids) == 4 else "stop", 0),
            "",
            RewardParts(reward, {"accuracy": reward, "format": 0.0}),
        )
        for number, (ids, reward) in enumerate(answers)
    ]
    return make_groups([drawn], [scored], OPTIONS)[0]


def test_a_row_trains_on_completions_only_each_with_its_advantage() -> None:
    one = group((11, 12, 13), ((1, 2), 1.0), ((3,), 0.0))
    row = make_row(pieces_of([one]), length=12, eod_id=0, options=OPTIONS, sample_id="r")
    assert row.tokens[0].tolist() == [11, 12, 13, 1, 2, 11, 12, 13, 3, 0, 0, 0]
    assert row.labels[0].tolist()[2:4] == [1, 2]
    assert row.labels[0].tolist()[7] == 3
    assert row.loss_mask[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert row.divisor[0].tolist() == [0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert row.advantages[0].tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, -0.5, 0, 0, 0, 0]
    assert row.sampled_log_probs[0].tolist() == [0, 0, -1, -2, 0, 0, 0, -3, 0, 0, 0, 0]
    assert row.cu_seqlens == (0, 5, 9, 12)


def test_a_full_row_has_no_padding_segment() -> None:
    one = group((11,), ((1, 2), 1.0), ((3, 4), 0.0))
    row = make_row(pieces_of([one]), length=6, eod_id=0, options=OPTIONS, sample_id="r")
    assert row.cu_seqlens == (0, 3, 6)


def test_a_row_of_padding_weighs_nothing() -> None:
    row = make_row([], length=4, eod_id=9, options=OPTIONS, sample_id="padding")
    assert row.tokens[0].tolist() == [9, 9, 9, 9]
    assert float(row.loss_mask.sum() + row.divisor.sum()) == 0.0
    assert row.cu_seqlens == (0, 4)


def test_pieces_fill_rows_and_none_is_lost() -> None:
    pieces = pieces_of([group((1,) * 5, ((1, 2), 1.0), ((1, 2, 3), 0.0)), group((1,), ((1, 2), 1.0), ((7,), 0.0))])
    rows = pack_pieces(pieces, 10)
    assert sorted(len(piece) for row in rows for piece in row) == [2, 3, 7, 8]
    assert len(rows) == 2


def test_facts_count_rewards_lengths_cuts_and_flat_groups() -> None:
    facts = facts_of([group((1,), ((1, 2), 1.0), ((1, 2, 3, 4), 0.0)), group((1,), ((1,), 1.0), ((7,), 1.0))])
    assert facts["reward"] == 0.75
    assert facts["pass_rate_by_domain"] == {"math": 0.75}
    assert facts["response_length"] == 2.0
    assert facts["truncated_fraction"] == 0.25
    assert facts["zero_variance_groups"] == 1


def test_a_step_whose_sampler_disagrees_is_not_learned_from() -> None:
    require_agreement(Mismatch(0.1, 3.0, 0.0), 0.1, step=4)
    with pytest.raises(TrainingError, match=r"step 4: sampler and trainer disagree.*mean 0.2 and max 3.*allows a mean"):
        require_agreement(Mismatch(0.2, 3.0, 0.0), 0.1, step=4)
    with pytest.raises(TrainingError, match="Likely causes"):
        require_agreement(Mismatch(float("nan"), 3.0, 0.0), 0.1, step=4)


def test_the_interval_of_a_pass_rate_is_wilsons() -> None:
    found = _with_interval("a", [1.0] * 8 + [0.0] * 2)
    assert found["a"] == 0.8
    assert (round(found["a_low"], 4), round(found["a_high"], 4)) == (0.4902, 0.9433)  # Wilson 1927, of 8 in 10
