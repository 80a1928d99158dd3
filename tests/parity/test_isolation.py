"""A row of packed documents is the documents, each alone: logits, losses and the gradients of every parameter.

Attention, convolution and SSM together, in a model of all layer kinds, with RoPE and without. The bound of
fp32 is 1e-5 and that of fp64 1e-9, for losses up to 10 and gradients of a mean loss up to 0.6: the same
products are summed in another order. Measured: losses 4e-6 and 6e-15, gradients 1e-6 and 1e-15.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ext.datasets.packed_params import packed_params
from megatron_ext.models.build import build_model
from megatron_ext.models.ssd import DEFAULT_CHUNK_SIZE
from tests.support.one_process import logits_of, one_process, random_tokens, strengthen
from tests.support.plans import make_plan

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}
EVERY_OFFSET = (DEFAULT_CHUNK_SIZE + 1,) * DEFAULT_CHUNK_SIZE
ROWS = {
    "one document": (70,),
    "two": (33, 90),
    "a token each": (1,) * 12,
    "longer and shorter than a chunk": (1, 200, 3, 64, 63, 65, 2),
    "fifty": tuple(range(1, 51)),
}


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    with one_process() as collection:
        yield collection


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module", params=["none", "rope"])
def model(groups: ProcessGroupCollection, dtype: torch.dtype, request: pytest.FixtureRequest) -> HybridModel:
    built = strengthen(build_model(make_plan(model={"position_embedding_type": request.param}), groups)).to(dtype)
    built.config.params_dtype = dtype
    return built


def packed_losses(model: HybridModel, row: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Loss of every token of `row` [1, s + 1], whose inputs are documents of these lengths, then padding."""
    tokens = row.shape[1] - 1
    packed = packed_params([0, *accumulate(lengths)], total_tokens=tokens, reset="full")
    return model(row[:, :-1], torch.arange(tokens)[None], None, labels=row[:, 1:], packed_seq_params=packed)


def losses_alone(model: HybridModel, row: Tensor, lengths: tuple[int, ...]) -> Tensor:
    starts = [0, *accumulate(lengths)][:-1]
    documents = [(row[:, s : s + n], row[:, s + 1 : s + n + 1]) for s, n in zip(starts, lengths, strict=True)]
    return torch.cat(
        [model(tokens, torch.arange(tokens.shape[1])[None], None, labels=labels) for tokens, labels in documents], dim=1
    )


def gradients(model: HybridModel, losses: Tensor) -> dict[str, Tensor]:
    """Of an uneven mean: an even one would hide errors that cancel."""
    weights = torch.linspace(0.5, 1.5, losses.shape[1], dtype=losses.dtype)
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad((losses * weights).mean(), parameters.values()), strict=True))


@pytest.mark.parametrize("padding", [0, 9], ids=["full", "padded"])
@pytest.mark.parametrize("name", ROWS)
def test_losses_and_gradients_equal_those_alone(
    model: HybridModel, dtype: torch.dtype, name: str, padding: int
) -> None:
    lengths = ROWS[name]
    row = random_tokens(1, sum(lengths) + padding + 1)
    packed, alone = packed_losses(model, row, lengths)[:, : sum(lengths)], losses_alone(model, row, lengths)
    assert alone.std() > 0.5, "flat losses would agree whatever the layers do"
    torch.testing.assert_close(packed, alone, rtol=0, atol=TOLERANCES[dtype])
    ours, theirs = gradients(model, packed), gradients(model, alone)
    for key, expected in theirs.items():
        error = float((ours[key] - expected).abs().max())
        assert error < TOLERANCES[dtype], f"{key}: {error:.1e}"


def test_documents_that_begin_at_every_offset_of_a_chunk(model: HybridModel, dtype: torch.dtype) -> None:
    row = random_tokens(1, sum(EVERY_OFFSET) + 1)
    with torch.no_grad():
        packed, alone = packed_losses(model, row, EVERY_OFFSET), losses_alone(model, row, EVERY_OFFSET)
    torch.testing.assert_close(packed, alone, rtol=0, atol=TOLERANCES[dtype])


def test_without_packed_parameters_the_documents_mix(model: HybridModel) -> None:
    row = random_tokens(1, 124)
    positions = torch.arange(123)[None]
    mixed = model(row[:, :-1], positions, None, labels=row[:, 1:])
    assert (mixed - losses_alone(model, row, (33, 90))).abs().max() > 0.5


def test_a_document_moves_no_bit_of_another(model: HybridModel) -> None:
    tokens, changed = random_tokens(1, 123), random_tokens(1, 123)
    changed[0, 20:30] = (changed[0, 20:30] + 1) % 120
    packed = packed_params([0, 20, 30, 100], total_tokens=123, reset="full")  # the next one in the same chunk
    with torch.no_grad():
        before, after = (model(t, torch.arange(123)[None], None, packed_seq_params=packed) for t in (tokens, changed))
    moved = (before != after).any(-1)[0]
    assert moved[20:30].all()
    assert not moved[:20].any()
    assert not moved[30:].any()


def test_resetting_attention_alone_isolates_a_model_without_states(groups: ProcessGroupCollection) -> None:
    model = strengthen(build_model(make_plan(model={"hybrid_layer_pattern": "*-*-"}), groups))
    tokens = random_tokens(1, 50)
    packed = packed_params([0, 20], total_tokens=50, reset="attention")
    with torch.no_grad():
        logits = model(tokens, torch.arange(50)[None], None, packed_seq_params=packed)
    apart = torch.cat([logits_of(model, part) for part in tokens.split((20, 30), dim=1)], dim=1)
    torch.testing.assert_close(logits, apart, rtol=0, atol=1e-5)


def test_resetting_attention_alone_leaves_the_states_running(groups: ProcessGroupCollection) -> None:
    model = strengthen(build_model(make_plan(model={"hybrid_layer_pattern": "M-M-"}), groups))
    tokens = random_tokens(1, 50)
    packed = packed_params([0, 20], total_tokens=50, reset="attention")
    with torch.no_grad():
        logits = model(tokens, torch.arange(50)[None], None, packed_seq_params=packed)
    assert torch.equal(logits, logits_of(model, tokens))
