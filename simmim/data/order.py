"""What comes when: permutations that are computed, not stored, and the hash behind them.

Own code, since neither numpy's nor torch's streams are promised across versions; the tests hold
frozen values.
"""

import math
from functools import lru_cache

from simmim.errors import DataError

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15

PURPOSE_ORDER = 1
PURPOSE_AUGMENT = 2
PURPOSE_REPLACE = 3

ROUNDS = 6
SMALL = 1000


def mix64(value: int) -> int:
    """Return the finaliser of splitmix64 of a 64-bit ``value``: a bijection of 64 bits."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def hash64(*keys: int) -> int:
    """Return 64 bits that follow from ``keys``, integers of any sign, in their order."""
    state = 0
    for key in keys:
        state = mix64(((state ^ (key & MASK)) + GOLDEN) & MASK)
    return state


def permute(position: int, n: int, seed: int, epoch: int) -> int:
    """Return the image at ``position`` of the permutation of ``n`` images in ``epoch``.

    Below 1000 images sort keys; above, a Feistel network of six rounds on a × b ≥ n (a and b
    near the root of n), walking on until the result lies below n.
    """
    if n < SMALL:
        return _sorted(n, seed, epoch)[position]
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = _round_keys(seed, epoch)
    while True:
        left, right = divmod(position, b)
        for i in range(0, ROUNDS, 2):
            left = (left + mix64((right + keys[i]) & MASK)) % a
            right = (right + mix64((left + keys[i + 1]) & MASK)) % b
        position = left * b + right
        if position < n:
            return position


def sample_index(t: int, n: int, seed: int) -> int:
    """Return the image at place ``t`` of the endless stream of epochs' permutations.

    Raises:
        DataError: There are no images.
    """
    if n < 1:
        raise DataError("there are no images to draw from.")
    epoch, position = divmod(t, n)
    return permute(position, n, seed, epoch)


@lru_cache(maxsize=4)
def _sorted(n: int, seed: int, epoch: int) -> list[int]:
    return sorted(range(n), key=lambda i: hash64(seed, PURPOSE_ORDER, epoch, i))


@lru_cache(maxsize=16)
def _round_keys(seed: int, epoch: int) -> list[int]:
    return [hash64(seed, PURPOSE_ORDER, epoch, i) for i in range(ROUNDS)]
