"""Random numbers by counter: a pure function of (seed, purpose, t), the same bits anywhere.

An integer hash (splitmix64; Steele et al., 2014), on Python integers and on int64 tensors, instead
of a generator, so that what is drawn does not depend on the device, the process, the micro-batch or
the version of a library, and a checkpoint needs no random state.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


class Purpose(IntEnum):
    """What random numbers are for: those of different purposes are independent."""

    ORDER = 1
    """Which image comes when."""
    AUGMENT = 2
    """Crop and flip of an image."""
    REPLACE = 3
    """The image that stands in for an unreadable one."""
    MIX = 4
    """The order within each of several weighted sources."""
    MASK = 5
    """Masks in training."""
    HOLDOUT_MASK = 6
    """Masks of images that are looked at."""
    TORCH = 7
    """Torch's own generator, for dropout and drop path."""
    DRAW = 8
    """Which labelled images a study learns from."""
    SHUFFLE = 9
    """Which images a study tests on."""
    WEIGHTS = 10
    """The first weights of a study's classifiers."""
    COLOUR = 11
    """Brightness, contrast and saturation of an image."""
    DISTORT = 12
    """RandAugment of a view."""
    ERASE = 13
    """What is erased of an image."""
    MIXUP = 14
    """How two images are mixed."""
    PATCHES = 15
    """Which patches of an image a probe learns from."""


def mix64(value: int) -> int:
    """Return the finaliser of splitmix64 of a 64-bit ``value``: a bijection of 64 bits."""
    value = ((value ^ (value >> 30)) * _FIRST) & WORD
    value = ((value ^ (value >> 27)) * _SECOND) & WORD
    return value ^ (value >> 31)


def hash64(*keys: int) -> int:
    """Return 64 bits that follow from ``keys``, integers of any sign, in their order."""
    state = 0
    for key in keys:
        state = mix64(((state ^ (key & WORD)) + GOLDEN) & WORD)
    return state


def _signed(value: int) -> int:
    value &= WORD
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    # int64's shift keeps the sign; the mask makes it the unsigned shift that the hash needs.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Hash every element of an int64 tensor to 64 well-mixed bits."""
    x = x + _signed(GOLDEN)
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def uniform(seed: int, purpose: Purpose, t: Tensor, count: int) -> Tensor:
    """Uniform random numbers in [0, 1) for each place ``t`` of a run.

    Args:
        seed: Seed of the run.
        purpose: What they are for.
        t: int64 (B,), the samples' places in the run.
        count: Numbers per sample.

    Returns:
        float32 (B, count), multiples of 2⁻²⁴.
    """
    rows = mix(t.long() ^ _signed(hash64(seed, purpose)))[:, None]
    columns = torch.arange(count, device=t.device)[None]
    return _shift(mix(rows + columns * _signed(GOLDEN)), 40).float() / (1 << 24)


@contextmanager
def seeded(*keys: int) -> Iterator[None]:
    """Set the generators of Python, numpy and torch's CPU, for libraries that draw from them.

    What is drawn within follows from ``keys``; afterwards the generators are as they were before.
    """
    value = hash64(*keys)
    numpy_before = np.random.get_state()  # noqa: NPY002
    before = random.getstate(), torch.default_generator.get_state()
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(value >> 1)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(numpy_before)  # noqa: NPY002
        torch.default_generator.set_state(before[1])


def torch_seed(seed: int, t: int) -> int:
    """Seed for torch's own generator (dropout, drop path) in the micro-batch that starts at t."""
    return hash64(seed, Purpose.TORCH, t) >> 1
