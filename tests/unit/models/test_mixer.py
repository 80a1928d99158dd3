"""What the local Mamba-2 mixer and the model around it refuse and keep."""

from __future__ import annotations

import pytest
import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.utils import InferenceMode
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ext.datasets.packed_params import packed_params
from megatron_ext.models.build import build_model
from megatron_ext.models.limits import UnsupportedError
from tests.support.one_process import logits_of, random_tokens, strengthen
from tests.support.plans import make_plan


@pytest.fixture(scope="module")
def model(groups: ProcessGroupCollection) -> HybridModel:
    return strengthen(build_model(make_plan(), groups))


@pytest.mark.parametrize("layer", [0, 2])
def test_packed_parameters_without_total_tokens_are_refused(model: HybridModel, layer: int) -> None:
    places = torch.tensor([0, 3, 8], dtype=torch.int32)
    leaky = PackedSeqParams(qkv_format="thd", cu_seqlens_q=places, cu_seqlens_kv=places)
    assert leaky.seq_idx is None, "what core builds without total_tokens resets no state"
    with pytest.raises(UnsupportedError, match="total_tokens None, for 1 row.s. of 8 tokens"):
        model.decoder.layers[layer](torch.zeros(8, 1, 32), attention_mask=None, packed_seq_params=leaky)


def test_several_packed_rows_are_refused(model: HybridModel) -> None:
    packed = packed_params([0, 3, 8], total_tokens=8, reset="full")
    with pytest.raises(UnsupportedError, match="for 2 row.s. of 8 tokens"):
        model(random_tokens(2, 8), torch.arange(8).expand(2, 8), None, packed_seq_params=packed)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_packed_row_is_not_decoded_from_a_cache(model: HybridModel, layer: int) -> None:
    context = StaticInferenceContext(max_batch_size=1, max_sequence_length=8)
    packed = packed_params([0, 3, 8], total_tokens=8, reset="full")
    with pytest.raises(UnsupportedError, match="cannot be decoded from a cache"):
        model.decoder.layers[layer](
            torch.zeros(8, 1, 32), attention_mask=None, inference_context=context, packed_seq_params=packed
        )


def test_later_tokens_change_nothing_earlier(model: HybridModel) -> None:
    tokens = random_tokens(1, 40)
    changed = tokens.clone()
    changed[0, 25:] = (changed[0, 25:] + 1) % 120
    torch.testing.assert_close(logits_of(model, tokens)[:, :25], logits_of(model, changed)[:, :25])


def test_rows_do_not_see_each_other(model: HybridModel) -> None:
    tokens = random_tokens(3, 20)
    together = logits_of(model, tokens)
    apart = torch.cat([logits_of(model, row[None]) for row in tokens])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


def prefill(model: HybridModel, context: StaticInferenceContext, tokens: Tensor) -> Tensor:
    """Logits [rows, vocabulary] after tokens [rows, s], which begin at the context's offset."""
    positions = context.sequence_len_offset + torch.arange(tokens.shape[1])[None]
    with torch.no_grad(), InferenceMode.active():
        logits = model(tokens, positions, None, inference_context=context, runtime_gather_output=True)
    context.sequence_len_offset += tokens.shape[1]
    return logits[:, -1]


def test_a_new_prompt_in_a_used_context_starts_from_nothing(model: HybridModel) -> None:
    model.eval()
    context = StaticInferenceContext(max_batch_size=1, max_sequence_length=40)
    prefill(model, context, random_tokens(1, 30, seed=1))
    context.reset()
    tokens = random_tokens(1, 2, seed=2)
    prefill(model, context, tokens[:, :1])
    after_both = prefill(model, context, tokens[:, 1:])
    torch.testing.assert_close(after_both, logits_of(model, tokens)[:, -1], rtol=0, atol=1e-5)


def test_a_cache_cannot_change_its_number_of_rows(model: HybridModel) -> None:
    context = StaticInferenceContext(max_batch_size=2, max_sequence_length=8)
    prefill(model, context, random_tokens(2, 3))
    with pytest.raises(UnsupportedError, match="batch size: 1 rows to continue, but the cache holds 2"):
        prefill(model, context, random_tokens(1, 1))


def test_decay_rates_are_built_float32_in_bfloat16(groups: ProcessGroupCollection) -> None:
    mixer = build_model(make_plan(precision="bf16"), groups).decoder.layers[0].mixer
    dtypes = {name: parameter.dtype for name, parameter in mixer.named_parameters(recurse=False)}
    assert dtypes == {
        "conv1d_weight": torch.bfloat16,
        "conv1d_bias": torch.bfloat16,
        "dt_bias": torch.bfloat16,
        "A_log": torch.float32,
        "D": torch.float32,
    }
