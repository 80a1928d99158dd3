"""Random orders and numbers that hang on a key only: not on machine, numpy version or earlier draws.

Number i is the i-th output of a splitmix64 generator that starts at 64 bits of sha256(key). numpy's own
`Generator` carries no such promise.

Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with
the constants of S. Vigna's splitmix64.c.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def keyed_bits(size: int, *, key: str) -> npt.NDArray[np.uint64]:
    """`size` numbers of 64 random bits, no two of them equal."""
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    bits = np.arange(1, size + 1, dtype=np.uint64)
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits += np.uint64(start)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits


def keyed_permutation(size: int, *, key: str) -> npt.NDArray[np.int64]:
    """A permutation of 0 to `size - 1`: the order of its random numbers, which has no ties.

    >>> keyed_permutation(5, key="a").tolist()
    [1, 2, 4, 3, 0]
    """
    return np.argsort(keyed_bits(size, key=key))


def keyed_choices(size: int, *, below: int, key: str) -> npt.NDArray[np.int64]:
    """`size` numbers from 0 to `below - 1`, each drawn from all of them.

    The remainder favours small numbers by at most below / 2^64, which no count of draws can show.

    >>> keyed_choices(6, below=3, key="a").tolist()
    [2, 1, 2, 1, 2, 1]
    """
    return (keyed_bits(size, key=key) % np.uint64(below)).astype(np.int64)
