"""One checkpoint, written on the CPU, gives the same logits and losses on every backend of the GPU.

Logits have a standard deviation of 0.9 and reach 4.5. Tolerances:

- local fp32 runs in torch with full float32 products: sums in another order, 1e-3 on the largest logit, 1e-5
  on the loss.
- te fp32: Transformer Engine multiplies float32 in TF32 (10 bits of mantissa); rounding the weights alone so
  moved logits by 5.5e-3 on a CPU. 3e-2, and 2e-3 on the loss.
- bf16 on the CPU moved logits by at most 0.046, 0.0075 in the mean, and the loss by 1.1e-3: three times that.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.datasets.packed_params import packed_params
from megatron_ext.models.backends import BackendName
from megatron_ext.runtime.device import device
from tests.gpu.models import CASES, loaded, logits_and_loss, plan_of, require, tokens_of_the_test
from tests.support.rollout import cached_logits

TOLERANCES = {("local", "fp32"): (1e-3, 1e-5), ("te", "fp32"): (3e-2, 2e-3)}
BF16 = (0.14, 4e-3)


@pytest.mark.parametrize(("backend", "precision"), CASES)
def test_logits_and_losses_are_the_cpus(
    groups: ProcessGroupCollection, reference: Path, backend: BackendName, precision: str
) -> None:
    require(backend, precision)
    largest, on_loss = TOLERANCES.get((backend, precision), BF16)
    logits, loss = logits_and_loss(
        loaded(groups, reference / "weights", backend=backend, precision=precision), tokens_of_the_test()
    )
    expected, expected_loss = torch.load(reference / "reference.pt")
    torch.testing.assert_close(logits, expected, rtol=0, atol=largest)
    assert loss == pytest.approx(expected_loss, abs=on_loss)


@pytest.mark.parametrize(("backend", "precision"), CASES)
def test_cached_decoding_is_the_whole_texts(
    groups: ProcessGroupCollection, reference: Path, backend: BackendName, precision: str
) -> None:
    require(backend, precision)
    largest, _ = TOLERANCES.get((backend, precision), BF16)
    model = loaded(groups, reference / "weights", backend=backend, precision=precision).eval()
    tokens = tokens_of_the_test()[0, :60].tolist()
    cached = cached_logits(model, plan_of(precision), tokens[:59], prompt=40)
    whole, _ = logits_and_loss(model, torch.tensor([tokens]))
    torch.testing.assert_close(cached, whole[0, 39:], rtol=0, atol=largest)


@pytest.mark.parametrize(("backend", "precision"), [case for case in CASES if case != ("te", "fp32")])
def test_a_packed_row_is_its_documents_alone(
    groups: ProcessGroupCollection, reference: Path, backend: BackendName, precision: str
) -> None:
    require(backend, precision)  # te attends to packed rows in half precision only
    model = loaded(groups, reference / "weights", backend=backend, precision=precision)
    lengths = (33, 200, 67)
    tokens = tokens_of_the_test()[:1, : sum(lengths)].to(device())
    bounds = [0, *accumulate(lengths)]
    packed = packed_params(bounds, total_tokens=sum(lengths), reset="full", device=device())
    places = torch.arange(sum(lengths), device=device())[None]
    with torch.no_grad():
        together = model(tokens, places, None, packed_seq_params=packed)
        mixed = model(tokens, places, None)
        alone = [model(part, places[:, : part.shape[1]], None) for part in tokens.split(lengths, dim=1)]
    largest, _ = TOLERANCES.get((backend, precision), BF16)
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=0, atol=largest)
    assert (mixed - together)[:, lengths[0] :].abs().max() > 5 * largest, "documents that mix would pass as well"


def test_one_seed_starts_both_backends_alike(groups: ProcessGroupCollection) -> None:
    require("te", "fp32")
    from megatron_ext.models.build import build_model

    local, te = (build_model(plan_of("bf16"), groups, backend=name) for name in ("local", "te"))
    of_te = dict(te.named_parameters())
    same = [name for name, parameter in local.named_parameters() if name in of_te]
    assert len(same) > len(of_te) / 2
    assert all(torch.equal(parameter, of_te[name]) for name, parameter in local.named_parameters() if name in same)
