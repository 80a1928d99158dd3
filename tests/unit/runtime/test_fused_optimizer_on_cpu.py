"""Without a GPU, core's optimizer is torch's, also where Transformer Engine is installed and core took its kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron.core import optimizer, utils
from megatron.core.optimizer import clip_grads

from megatron_ext.runtime.device import device_scope, has_gpu


class FusedAdam:
    """What core imports from an extension."""


@pytest.mark.skipif(has_gpu(), reason="says what happens without a GPU")
def test_an_installed_extension_is_set_aside_inside_the_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transformer_engine_torch.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(optimizer, "Adam", FusedAdam)
    monkeypatch.setattr(clip_grads, "l2_norm_impl", FusedAdam)
    with device_scope():
        assert optimizer.Adam is torch.optim.AdamW
        assert clip_grads.l2_norm_impl is utils.local_multi_tensor_l2_norm
    assert optimizer.Adam is clip_grads.l2_norm_impl is FusedAdam
