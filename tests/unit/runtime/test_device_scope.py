"""The CPU stand-ins: scoped, loud about what they do not know, refused beside a GPU."""

from __future__ import annotations

import pytest
import torch

from megatron_ext.runtime.device import cpu_stand_ins, device, device_scope, has_gpu, queue_note

needs_no_gpu = pytest.mark.skipif(has_gpu(), reason="the stand-ins are for machines without a GPU")


@needs_no_gpu
def test_inside_the_scope_cuda_means_cpu() -> None:
    with device_scope():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.ones(1).cuda().device.type == "cpu"
        assert torch.ones(1).to("cuda:0").device.type == "cpu"
        assert torch.cuda.current_device() == torch.device("cpu")
        assert torch.zeros(1).type() == "torch.cuda.FloatTensor"


@needs_no_gpu
def test_outside_the_scope_nothing_is_changed() -> None:
    before = torch.cuda.current_device
    with device_scope(), device_scope():
        assert torch.cuda.current_device is not before
    assert torch.cuda.current_device is before
    assert torch.zeros(1).type() == "torch.FloatTensor"
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="cuda")


@needs_no_gpu
def test_an_error_inside_leaves_the_scope_clean() -> None:
    before = torch.cuda.synchronize
    with pytest.raises(KeyError), device_scope():
        raise KeyError
    assert torch.cuda.synchronize is before
    with device_scope():
        assert torch.zeros(1, device="cuda").device.type == "cpu"


@needs_no_gpu
@pytest.mark.parametrize(
    "site",
    [
        lambda: torch.cuda.get_device_properties(0),
        lambda: torch.cuda.get_device_capability(),
        lambda: torch.cuda.get_device_name(),
        lambda: torch.cuda.default_stream(),
    ],
)
def test_a_site_without_a_stand_in_fails_loudly(site: object) -> None:
    assert callable(site)
    with device_scope(), pytest.raises((RuntimeError, AssertionError)):
        site()


def test_the_stand_ins_are_refused_where_a_gpu_exists() -> None:
    with pytest.raises(AssertionError, match="must never be entered where a GPU exists"):
        cpu_stand_ins(gpu_exists=True).__enter__()


@needs_no_gpu
def test_the_device_without_a_gpu_is_the_cpu() -> None:
    assert device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("generation", "queues", "said"),
    [(9, None, "not set"), (9, "8", "8"), (9, "1", ""), (10, None, ""), (None, None, "")],
)
def test_a_gpu_that_may_start_late_what_ranks_send_is_said(
    monkeypatch: pytest.MonkeyPatch, generation: int | None, queues: str | None, said: str
) -> None:
    if queues is None:
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    else:
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", queues)
    note = queue_note(generation)
    assert note.startswith(f"CUDA_DEVICE_MAX_CONNECTIONS: {said}, and ranks share") if said else note == ""
