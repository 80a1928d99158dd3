"""A model 20 times larger than the memory that they use above their imports goes in and out, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.convert_memory import measure


@pytest.mark.slow
def test_a_model_goes_in_and_out_through_a_twentieth_of_its_size(tmp_path: Path) -> None:
    found = measure(tmp_path, layers=300)
    assert found["model_bytes"] > 500 * 10**6
    assert found["same_bytes"]
    assert min(found["model_over_memory"].values()) > 20, found
