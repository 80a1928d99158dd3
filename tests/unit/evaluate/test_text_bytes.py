"""A loss that is no number ends an evaluation: it would stand in the results as one."""

import math

import pytest

from data_tools.errors import TrainingError
from megatron_ext.evaluate.text_bytes import bits_per_byte, require_finite


def test_a_loss_that_is_no_number_is_refused_with_its_place() -> None:
    assert require_finite(3.5, "held-out, source sums") == 3.5
    with pytest.raises(TrainingError, match="held-out, source sums: the loss is nan"):
        require_finite(math.nan, "held-out, source sums")


def test_bits_of_a_byte_are_nats_of_the_text_over_its_bytes() -> None:
    metric = bits_per_byte(8 * math.log(2), 4, 3)  # 8 bits in 4 bytes, which were 3 tokens
    assert (metric.value, metric.n, metric.is_higher_better) == (2.0, 3, False)
