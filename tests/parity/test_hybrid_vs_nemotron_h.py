"""Our hybrid computes what transformers' NemotronHForCausalLM computes.

Same weights, float32, logits within 2e-5 where the largest is about 3: some 30 float32 roundings at
that size (2.4e-7 each) times the depth; measured 6e-6. Lengths below, at and above transformers' chunk
(16 here) and ours (64). Both are also held to a model whose SSD is the float64 scan, so that agreement
is not agreement of two chunked algorithms.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection

import megatron_ext.models.kernels
from megatron_ext.datasets.packed_params import packed_params
from megatron_ext.models.build import build_model
from megatron_ext.models.ssd import ssd_scan_ref
from tests.support.nemotron_h import copy_weights, nemotron_h
from tests.support.one_process import logits_of, one_process, random_tokens, strengthen
from tests.support.plans import make_plan

TOLERANCE = 2e-5
THEIR_CHUNK = 16
PATTERN = "M-M*M-"


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroupCollection]:
    with one_process() as collection:
        yield collection


def build_pair(groups: ProcessGroupCollection, **model: object) -> tuple[HybridModel, torch.nn.Module]:
    plan = make_plan(model={"hybrid_layer_pattern": PATTERN, **model})
    ours = strengthen(build_model(plan, groups))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "norm" in name:  # all ones would hide a norm that is applied with the wrong weight
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    theirs = nemotron_h(plan, chunk_size=THEIR_CHUNK).eval()
    copy_weights(ours, theirs, plan)
    return ours.eval(), theirs


@pytest.fixture(scope="module")
def pair(groups: ProcessGroupCollection) -> tuple[HybridModel, torch.nn.Module]:
    return build_pair(groups)


@pytest.mark.parametrize("length", [1, 5, THEIR_CHUNK, 50, 64, 150])
def test_logits_equal_transformers(pair: tuple[HybridModel, torch.nn.Module], length: int) -> None:
    ours, theirs = pair
    tokens = random_tokens(2, length)
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert expected.abs().max() > 1  # flat logits would agree whatever the layers do
    torch.testing.assert_close(logits_of(ours, tokens), expected, rtol=0, atol=TOLERANCE)


def test_a_packed_row_equals_transformers_on_each_document_alone(
    pair: tuple[HybridModel, torch.nn.Module],
) -> None:
    ours, theirs = pair
    tokens, lengths = random_tokens(1, 150), (1, 40, 3, 70, 36)
    places = [0, *accumulate(lengths)]
    packed = packed_params(places, total_tokens=150, reset="full")
    with torch.no_grad():
        logits = ours(tokens, torch.arange(150)[None], None, packed_seq_params=packed)
        expected = torch.cat([theirs(document).logits for document in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)


def test_logits_equal_the_sequential_scan(
    pair: tuple[HybridModel, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair
    tokens = random_tokens(2, 150)
    chunked = logits_of(ours, tokens)
    monkeypatch.setattr(
        megatron_ext.models.kernels, "ssd", lambda *a, **k: tuple(t.float() for t in ssd_scan_ref(*a, **k))
    )
    torch.testing.assert_close(chunked, logits_of(ours, tokens), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "model",
    [
        {"share_embeddings_and_output_weights": True},
        {"mamba_num_groups": 1},
        {"mamba_num_groups": 4},
        {"num_query_groups": 4},
        {"num_query_groups": 1},
    ],
    ids=lambda model: "-".join(f"{key}={value}" for key, value in model.items()),
)
def test_logits_equal_transformers_in_other_shapes(groups: ProcessGroupCollection, model: dict[str, object]) -> None:
    ours, theirs = build_pair(groups, **model)
    tokens = random_tokens(2, 50)
    with torch.no_grad():
        expected = theirs(tokens).logits
    torch.testing.assert_close(logits_of(ours, tokens), expected, rtol=0, atol=TOLERANCE)


def test_gradients_equal_transformers(pair: tuple[HybridModel, torch.nn.Module]) -> None:
    # Gradients sum over 2 x 50 tokens: 1e-5 of the largest gradient of each matrix. Those of A and dt are
    # differences that nearly cancel under strong decay; against the float64 scan ours are off by 1e-4
    # there and transformers' by 2e-5.
    ours, theirs = pair
    tokens = random_tokens(2, 51)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    ours(inputs, torch.arange(50).expand(2, -1), None, labels=labels).mean().backward()
    torch.nn.functional.cross_entropy(theirs(inputs).logits.flatten(0, 1), labels.flatten()).backward()
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    pairs = {
        "embedding.word_embeddings.weight": "model.embeddings.weight",
        "output_layer.weight": "lm_head.weight",
        "decoder.layers.0.mixer.in_proj.weight": "model.layers.0.mixer.in_proj.weight",
        "decoder.layers.0.mixer.conv1d_weight": "model.layers.0.mixer.conv1d.weight",
        "decoder.layers.0.mixer.A_log": "model.layers.0.mixer.A_log",
        "decoder.layers.0.mixer.dt_bias": "model.layers.0.mixer.dt_bias",
        "decoder.layers.0.mixer.D": "model.layers.0.mixer.D",
        "decoder.layers.0.mixer.norm.weight": "model.layers.0.mixer.norm.weight",
        "decoder.layers.1.mlp.linear_fc1.weight": "model.layers.1.mixer.up_proj.weight",
        "decoder.layers.3.self_attention.linear_proj.weight": "model.layers.3.mixer.o_proj.weight",
    }
    for name, their_name in pairs.items():
        actual, expected = mine[name].grad, other[their_name].grad
        assert actual is not None
        assert expected is not None
        error = float((actual - expected).abs().max() / expected.abs().max())
        tolerance = 3e-4 if name.endswith(("A_log", "dt_bias")) else 1e-5
        assert error < tolerance, f"{name}: {error}"
