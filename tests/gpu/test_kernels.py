"""mamba-ssm's and causal-conv1d's kernels against this project's torch code in float64, on the GPU.

Errors are relative to the largest value of each tensor. Tolerances: bf16 has 8 bits of mantissa, and the
kernels also keep states between chunks in it: 3e-2. fp32 goes through TF32 products, 10 bits and sums of up
to 256 terms: 5e-3. The convolution and the steps have no matrix products: 1e-5 in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megatron_ext.models import kernels
from megatron_ext.models.conv import causal_conv1d_silu, causal_conv1d_silu_step
from megatron_ext.models.norm import RMSNorm
from megatron_ext.models.ssd import ssd_chunked, ssd_step
from megatron_ext.runtime.device import device

ROWS, HEADS, WIDTH, GROUPS, STATE = 2, 8, 64, 2, 128
LENGTHS = [1, 100, 600]  # less than a chunk of 256, and no multiple of it
SSD = {torch.float32: 5e-3, torch.bfloat16: 3e-2}
PLAIN = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

needs_ssd = pytest.mark.skipif(kernels._ssd_kernel() is None, reason="not run: mamba-ssm is not importable")
needs_conv = pytest.mark.skipif(kernels._conv_package() is None, reason="not run: causal-conv1d is not importable")


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device())


def ssd_inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    """x, dt, A, B, C, D and a state, rounded to `dtype` where the mixer has them so."""
    x, B, C = (
        draw(ROWS, length, *shape, seed=seed).to(dtype)
        for seed, shape in enumerate([(HEADS, WIDTH), (GROUPS, STATE), (GROUPS, STATE)])
    )
    dt = torch.nn.functional.softplus(draw(ROWS, length, HEADS, seed=3) - 3)
    A, D = -draw(HEADS, seed=4).abs() - 0.5, draw(HEADS, seed=5)
    return [x, dt, A, B, C, D, draw(ROWS, HEADS, WIDTH, STATE, seed=6)]


def assert_close(ours: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float) -> None:
    for number, (a, b) in enumerate(zip(ours, exact, strict=True)):
        error = float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3))
        assert error < tolerance, f"tensor {number}: {error:.1e} of its largest value"


@needs_ssd
@pytest.mark.parametrize("dtype", SSD)
@pytest.mark.parametrize("length", LENGTHS)
def test_ssd_values_and_gradients(length: int, dtype: torch.dtype) -> None:
    inputs = [t.requires_grad_() for t in ssd_inputs(length, dtype)[:6]]
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    weights = draw(ROWS, length, HEADS, WIDTH, seed=7)
    results = []
    for function, (x, dt, A, B, C, D) in ((kernels.triton_ssd, inputs), (ssd_chunked, exact_inputs)):
        y, state = function(x, dt, A, B, C, D=D)
        gradients = torch.autograd.grad((y.double() * weights).sum(), [x, dt, A, B, C, D])
        results.append([y.detach(), state.detach(), *gradients])
    assert_close(results[0], results[1], SSD[dtype])


def documents(length: int) -> Tensor:
    """[ROWS, length] int32: a new document at 1, 70, the chunk's end 256 and 300; half as far in the second row."""
    places = torch.arange(length, device=device())
    bounds = torch.tensor([1, 70, 256, 300], device=device())
    return torch.stack([(places[:, None] >= each).sum(1) for each in (bounds, bounds // 2 + 1)]).to(torch.int32)


@needs_ssd
@pytest.mark.parametrize("dtype", SSD)
def test_ssd_keeps_documents_apart(dtype: torch.dtype) -> None:
    inputs = [t.requires_grad_() for t in ssd_inputs(600, dtype)[:6]]
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    weights = draw(ROWS, 600, HEADS, WIDTH, seed=7)
    results = []
    for function, (x, dt, A, B, C, D) in ((kernels.triton_ssd, inputs), (ssd_chunked, exact_inputs)):
        y, state = function(x, dt, A, B, C, D=D, seq_idx=documents(600))
        gradients = torch.autograd.grad((y.double() * weights).sum(), [x, dt, A, B, C, D])
        results.append([y.detach(), state.detach(), *gradients])
    assert_close(results[0], results[1], SSD[dtype])


@needs_conv
@pytest.mark.parametrize("dtype", PLAIN)
def test_convolution_keeps_documents_apart(dtype: torch.dtype) -> None:
    shapes = [(ROWS, 600, 768), (768, 1, 4), (768,)]
    inputs = [draw(*shape, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)]
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    weights = draw(ROWS, 600, 768, seed=7)
    results = []
    for function, arguments in ((kernels.fused_conv, inputs), (causal_conv1d_silu, exact_inputs)):
        y = function(*arguments, documents(600))
        results.append([y.detach(), *torch.autograd.grad((y.double() * weights).sum(), arguments)])
    assert_close(results[0], results[1], PLAIN[dtype])


@needs_ssd
@pytest.mark.parametrize("dtype", SSD)
def test_ssd_goes_on_from_a_state(dtype: torch.dtype) -> None:
    x, dt, A, B, C, D, state = ssd_inputs(300, dtype)
    with torch.no_grad():
        ours = kernels.triton_ssd(x, dt, A, B, C, D=D, initial_state=state)
        x, dt, A, B, C, D, state = (t.double() for t in (x, dt, A, B, C, D, state))
        assert_close(ours, ssd_chunked(x, dt, A, B, C, D=D, initial_state=state), SSD[dtype])


@needs_ssd
@pytest.mark.parametrize("dtype", PLAIN)
def test_one_ssd_step(dtype: torch.dtype) -> None:
    x, dt, A, B, C, D, state = ssd_inputs(1, dtype)
    step = [x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D]
    exact = ssd_step(state.double(), *(t.double() for t in step))
    assert_close(kernels.triton_ssd_step(state.clone(), *step), exact, PLAIN[dtype])


@needs_conv
@pytest.mark.parametrize("channels", [768, 20])  # channels last, and where 8 does not divide them
@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("length", LENGTHS)
def test_convolution_values_and_gradients(length: int, dtype: torch.dtype, channels: int) -> None:
    shapes = [(ROWS, length, channels), (channels, 1, 4), (channels,)]
    inputs = [draw(*shape, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate(shapes)]
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    weights = draw(ROWS, length, channels, seed=7)
    results = []
    for function, arguments in ((kernels.fused_conv, inputs), (causal_conv1d_silu, exact_inputs)):
        y = function(*arguments)
        results.append([y.detach(), *torch.autograd.grad((y.double() * weights).sum(), arguments)])
    assert_close(results[0], results[1], PLAIN[dtype])


@needs_conv
@pytest.mark.parametrize("channels", [768, 20])
def test_a_lone_token_out_of_a_wider_row_is_convolved(channels: int) -> None:
    x = draw(1, 1, channels + 3, seed=0).bfloat16()[..., :channels]  # as the mixer cuts it out of its projection
    weight, bias = draw(channels, 1, 4, seed=1).bfloat16(), draw(channels, seed=2).bfloat16()
    exact = causal_conv1d_silu(x.double(), weight.double(), bias.double())
    assert_close([kernels.fused_conv(x, weight, bias)], [exact], PLAIN[torch.bfloat16])


@needs_conv
@pytest.mark.parametrize("dtype", PLAIN)
def test_one_convolution_step_shifts_the_state(dtype: torch.dtype) -> None:
    window, x = (draw(*shape, seed=seed).to(dtype) for seed, shape in enumerate([(ROWS, 768, 4), (ROWS, 768)]))
    weight, bias = (draw(*shape, seed=seed).to(dtype) for seed, shape in ((2, (768, 1, 4)), (3, (768,))))
    exact_window = window.double()
    exact = causal_conv1d_silu_step(exact_window, x.double(), weight.double(), bias.double())
    ours = kernels.fused_conv_step(window, x, weight, bias)
    assert_close([ours, window], [exact, exact_window], PLAIN[dtype])


@needs_ssd
@needs_conv
def test_the_mixer_takes_the_kernels_for_bf16_and_torch_for_fp32() -> None:
    assert "mamba-ssm" in kernels.describe_kernels("bf16")
    x, dt, A, B, C, D, _ = ssd_inputs(100, torch.float32)
    assert torch.equal(kernels.ssd(x, dt, A, B, C, D=D)[0], ssd_chunked(x, dt, A, B, C, D=D)[0])


@needs_ssd
@pytest.mark.parametrize("dtype", PLAIN)
def test_gated_norm_values_and_gradients(dtype: torch.dtype) -> None:
    x, z = (draw(100, ROWS, 256, seed=seed).to(dtype) for seed in (0, 1))
    z = torch.cat([z, z], dim=-1)[..., :256]  # as the mixer cuts it out of its projection
    weight = 1 + 0.1 * draw(256, seed=2).to(dtype)
    inputs = [t.detach().requires_grad_() for t in (x, z, weight)]
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    weights = draw(100, ROWS, 256, seed=3)
    results = []
    for function, arguments in ((partial(kernels.fused_gated_norm, eps=1e-5, group_size=64), inputs),
                                (exact_gated_norm, exact_inputs)):  # fmt: skip
        y = function(*arguments)
        results.append([y.detach(), *torch.autograd.grad((y.double() * weights).sum(), arguments)])
    assert_close(results[0], results[1], PLAIN[dtype])


def exact_gated_norm(x: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    h = (x * z.sigmoid() * z).unflatten(-1, (-1, 64))
    return (h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * weight


def test_the_norm_of_half_precision_is_torchs_fused_one_with_the_same_values_and_gradients() -> None:
    norm = RMSNorm(SimpleNamespace(params_dtype=torch.bfloat16, sequence_parallel=False), 256)
    with torch.no_grad():
        norm.weight.add_(0.1 * draw(256, seed=2).bfloat16())
    x, weights = draw(100, ROWS, 256, seed=0).bfloat16().requires_grad_(), draw(100, ROWS, 256, seed=1)
    y = norm(x)
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, norm.weight))
    exact = exact_x / (exact_x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * exact_weight
    results = [
        [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), given)]
        for out, given in ((y, [x, norm.weight]), (exact, [exact_x, exact_weight]))
    ]
    assert_close(results[0], results[1], PLAIN[torch.bfloat16])
