"""Random numbers that are known from their key and step alone."""

from __future__ import annotations

import numpy as np

from megatron_ext.rollout.keyed_random import random_bits, stream_key, uniforms


def test_the_bits_are_splitmix64s() -> None:
    """The first outputs that its authors' own C code gives for the seeds 0 and 1234567."""
    keys = np.array([0, 0, 0, 1234567, 1234567], np.uint64)
    bits = random_bits(keys, np.array([0, 1, 2, 0, 1], np.uint64))
    assert [hex(value) for value in bits[:3].tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]
    assert bits[3:].tolist() == [6457827717110365317, 3203168211198807973]


def test_a_number_is_the_bits_as_a_share_of_all_and_below_one() -> None:
    share = 0xE220A8397B1DC / 2**52
    assert uniforms(np.zeros(1, np.uint64), np.zeros(1, np.uint64)).tolist() == [share]


def test_seeds_and_samples_have_streams_of_their_own() -> None:
    keys = {stream_key(seed, sample) for seed in range(50) for sample in range(50)}
    assert len(keys) == 2500
    assert stream_key(1, 11) != stream_key(11, 1)
    assert stream_key(7, 0) == stream_key(7, 0)


def test_neighbouring_streams_are_uncorrelated() -> None:
    steps = np.arange(4000, dtype=np.uint64)
    rows = np.stack([uniforms(np.full(4000, stream_key(0, j), np.uint64), steps) for j in range(4)])
    correlations = np.corrcoef(rows)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(4000)
    assert np.abs(rows.mean(1) - 0.5).max() < 4 * np.sqrt(1 / 12 / 4000)
