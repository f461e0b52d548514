"""Random numbers by counter: a pure function of (seed, purpose, t), the same bits anywhere.

An integer hash (splitmix64; Steele et al., 2014) on int64 tensors instead of a generator, so that
a mask does not depend on the device, the process, the micro-batch or the torch version, and a
checkpoint needs no random state.
"""

from enum import IntEnum

import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a stream of random numbers is for; streams of different purposes are independent."""

    MASK = 1
    HOLDOUT_MASK = 2
    TORCH = 3


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    # int64's shift keeps the sign; the mask makes it the unsigned shift that the hash needs.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Hash every element of an int64 tensor to 64 well-mixed bits."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
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
    # A number of the CPU goes into a device's arithmetic without the host's wait for a copy.
    key = mix(torch.tensor(_signed(seed))) ^ int(purpose)
    rows = mix(mix(key) ^ t.long())[:, None]
    columns = torch.arange(count, device=t.device)[None]
    return _shift(mix(rows + columns * _GOLDEN), 40).float() / (1 << 24)


def torch_seed(seed: int, t: int) -> int:
    """Seed for torch's own generator (dropout, drop path) in the micro-batch that starts at t."""
    key = mix(torch.tensor(_signed(seed))) ^ int(Purpose.TORCH)
    return int(_shift(mix(mix(key) ^ t), 1))
