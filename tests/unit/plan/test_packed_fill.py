"""How full packed rows are, as docs/explanation/blending.md says it."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_ext.plan.packed_rows import WINDOW_PIECES, pack_window, sum_counts


def _fill_percent(mean: int, sequence_length: int, *, windows: int) -> float:
    """Of windows of documents with log-normal lengths, sigma 1."""
    documents = int(WINDOW_PIECES / (1 + mean / sequence_length))
    lengths = np.random.default_rng(0).lognormal(sigma=1.0, size=(windows, documents)) * mean / np.exp(0.5)
    packed = [
        pack_window(one, sequence_length=sequence_length, long_documents="split").counts()
        for one in np.maximum(1, lengths).astype(np.int32)
    ]
    total = sum_counts(packed)
    return 100 * total.tokens / (total.rows * sequence_length)


@pytest.mark.parametrize("sequence_length", [2048, 4096, 8192])
@pytest.mark.parametrize("mean", [400, 1000, 3700])
def test_rows_of_usual_documents_are_over_99_9_percent_full(mean: int, sequence_length: int) -> None:
    assert _fill_percent(mean, sequence_length, windows=2) > 99.9


def test_rows_of_32k_of_documents_of_400_tokens_are_over_99_7_percent_full() -> None:
    assert _fill_percent(400, 32_768, windows=8) > 99.7
