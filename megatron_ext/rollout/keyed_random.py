"""Random numbers keyed by (seed, sample, step), so that a batch's composition never changes a sample.

Every sample has a SplitMix64 generator of its own whose state before step t is key + t * GAMMA, so any step's number
is known without those before it, and all rows of a batch are drawn at once (Source: Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014, figure 13 with mix variant 13). The key is a 64-bit hash.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def stream_key(seed: int, sample_index: int) -> int:
    """The state at which a sample's generator starts, in [0, 2^64)."""
    digest = hashlib.blake2b(f"{seed}/{sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def uniforms(keys: NDArray[np.uint64], steps: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1 - 2^-52] for each pair of key and step, both [rows].

    52 bits: times a sum of probabilities it stays below that sum whatever the rounding.
    """
    return (random_bits(keys, steps) >> np.uint64(12)) * 2.0**-52


def random_bits(keys: NDArray[np.uint64], steps: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output number `steps`, from 0, of the generators that start at `keys`; both [rows]."""
    z = keys + (steps + np.uint64(1)) * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
