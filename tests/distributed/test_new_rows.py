"""Rows of new tokens are the mean of the known ones, in every layout bit for bit; no other row moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.models.build import build_model
from megatron_ext.models.initialise import global_parameters
from megatron_ext.models.new_rows import VOCABULARY_WEIGHTS, fill_new_rows
from megatron_ext.plan.stage_plan import NewToken, NewTokensPlan
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from tests.support.distributed import run_distributed
from tests.support.plans import make_plan

NEW = NewTokensPlan(
    tokens=(NewToken(token="<|tool|>", id=101), NewToken(token="<|call|>", id=40)),
    known_tokenizer_fingerprint="",
    known_vocab_size=100,
    unused_ids=(7, 40),
    known_rows=120,
    rows=128,
)
NEW_IDS = [40, 101, *range(120, 128)]
"""One that was free among the known, one in their padding, and padding that they had not."""

OLD_IDS = [number for number in range(128) if number not in NEW_IDS]
LAYOUTS = {"one process": (1, 1), "tp2": (2, 1), "pp2": (1, 2), "tp2 pp2": (2, 2)}


def fill_rank(tensor: int, pipeline: int, model: dict[str, Any], precision: str) -> dict[str, tuple[Tensor, Tensor]]:
    """This rank's rows of embedding and output layer by name, before and after."""
    sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
    plan = make_plan(model=model, layout=sizes, precision=precision)
    with process_groups(Launch.from_environment(), **sizes) as groups:
        built = build_model(plan, groups)
        rows = {name: weight for name, weight in built.named_parameters() if name in VOCABULARY_WEIGHTS}
        before = {name: weight.detach().clone() for name, weight in rows.items()}
        fill_new_rows(built, NEW, groups)
        names = {id(weight): name for name, weight in global_parameters(built)}
        return {f"{names[id(weight)]} of {name}": (before[name], weight.detach()) for name, weight in rows.items()}


def whole(layout: str, model: dict[str, Any], precision: str) -> dict[str, tuple[Tensor, Tensor]]:
    """All rows, of all tensor-parallel ranks."""
    tensor, pipeline = LAYOUTS[layout]
    ranks = run_distributed(fill_rank, tensor * pipeline, tensor, pipeline, model, precision)
    found = {}
    for first in range(0, len(ranks), tensor):
        for name in ranks[first]:
            parts = [rank[name] for rank in ranks[first : first + tensor]]
            found[name] = (torch.cat([before for before, _ in parts]), torch.cat([after for _, after in parts]))
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_the_mean_of_the_known_and_no_other_row_moves(tied: bool, precision: str) -> None:
    found = whole("one process", {"share_embeddings_and_output_weights": tied}, precision)
    assert len(found) == (1 if tied else 2)
    for before, after in found.values():
        assert torch.equal(after[OLD_IDS], before[OLD_IDS])
        known = [number for number in range(100) if number not in (7, 40)]
        mean = before[known].double().mean(0).to(before.dtype)
        for number in NEW_IDS:
            torch.testing.assert_close(after[number], mean, rtol=0, atol=1e-9)
        assert not torch.equal(before[101], after[101])


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
@pytest.mark.parametrize("tied", [False, True])
def test_every_layout_fills_the_same_rows(tied: bool, layout: str) -> None:
    model = {"share_embeddings_and_output_weights": tied}
    alone, spread = whole("one process", model, "fp32"), whole(layout, model, "fp32")
    embedding, output = (f"embedding.word_embeddings.weight of {name}" for name in VOCABULARY_WEIGHTS)
    if tied and "pp2" in layout:  # the last stage has a copy
        assert torch.equal(spread[output][1], spread[embedding][1])
        del spread[output]
    assert spread.keys() == alone.keys()
    for name, (_, after) in alone.items():
        assert torch.equal(spread[name][1], after), name
