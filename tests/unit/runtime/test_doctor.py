"""What the doctor says of a machine without a GPU."""

from __future__ import annotations

import pytest

from megatron_ext.runtime.device import has_gpu
from megatron_ext.runtime.doctor import find

without_gpu = pytest.mark.skipif(has_gpu(), reason="says what happens without a GPU")


@without_gpu
def test_the_doctor_says_which_backend_auto_takes_and_why() -> None:
    (finding,) = [finding for finding in find() if finding.what == "training.backend: auto"]
    assert finding.found == "local"
    assert finding.meaning.startswith("te needs a GPU, transformer-engine")


@without_gpu
def test_the_doctor_says_whose_adam_is_taken() -> None:
    assert [finding.found for finding in find() if finding.what == "optimizer"] == ["AdamW of torch"]
