"""Masks and the order of images against whole numbers, fractions and chance."""

import itertools
import math
from fractions import Fraction

import numpy as np
import torch

from simmim.config.mask import RandomMask, Rounding
from simmim.config.recipes import RECIPES
from simmim.data.loading.order import Order
from simmim.masking.samplers import RandomSampler
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose, mix, uniform
from simmim.verify.check import Figure, Ground

_WORD = 2**64
_ODDS = 4.7534243
"""Standard deviations of a normal that chance exceeds once in a million, on one side."""
_SPLITMIX = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)
"""The first outputs of splitmix64 from the state 0, as its authors' code gives them."""


def splitmix64(x: int) -> int:
    """Steele, Lea and Flood (2014), in plain integers."""
    x = (x + 0x9E3779B97F4A7C15) % _WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % _WORD
    return x ^ (x >> 31)


def score(seed: int, t: int, unit: int) -> Fraction:
    """The score of a mask unit in plain integers: 24 bits of the hash of (seed, purpose, t)."""
    row = splitmix64(splitmix64(splitmix64(seed % _WORD) ^ int(Purpose.MASK)) ^ t)
    return Fraction(splitmix64((row + unit * 0x9E3779B97F4A7C15) % _WORD) >> 40, 2**24)


def counted(ratio: str, units: int, rounding: Rounding) -> int:
    """Masked units in exact fractions: SimMIM's, MAE's and the default rule, within 1 … N - 1."""
    share = Fraction(ratio) * units
    count = {
        "half-up": math.floor(share + Fraction(1, 2)),
        "ceil": math.ceil(share),
        "keep-floor": units - math.floor(units - share),
    }[rounding]
    return min(max(count, 1), units - 1)


def hash_vectors(ground: Ground) -> Figure:
    """The integer hash behind all masks, on tensors, against plain integers.

    The published first outputs of splitmix64 from state 0, random 64-bit words, and the uniform
    numbers of three places of a run. Exact.
    """
    golden = 0x9E3779B97F4A7C15
    words = [number * golden % _WORD for number in range(4)]
    expected = list(_SPLITMIX)
    drawn = ground.numbers("hash").integers(0, _WORD, 200, np.uint64, endpoint=False)
    words += [int(word) for word in drawn]
    expected += [splitmix64(word) for word in words[4:]]
    signed = [word - _WORD if word >= _WORD // 2 else word for word in words]
    found = [int(value) % _WORD for value in mix(torch.tensor(signed))]
    faults = sum(a != b for a, b in zip(found, expected, strict=True))
    places = [0, 1, 10**12]
    uniforms = uniform(ground.seed, Purpose.MASK, torch.tensor(places), 50).tolist()
    for t, row in zip(places, uniforms, strict=True):
        faults += sum(Fraction(u) != score(ground.seed, t, j) for j, u in enumerate(row))
    return Figure(faults, 0, "values that differ")


def counts(ground: Ground) -> Figure:
    """How many units are masked, for all three roundings, against exact fractions.

    floor(ρN + ½), ceil(ρN) (SimMIM) and N - floor(N(1 - ρ)) (MAE), for N from 2 to 400 and the
    ratios of the recipes and others; then masks as drawn: each row masks so many, and the indices
    of masked and visible are those of the mask, ascending. Exact.
    """
    ratios = {"0.05", "0.3", "0.5", "0.9", *(str(make().mask.ratio) for make in RECIPES.values())}
    roundings: tuple[Rounding, ...] = ("half-up", "ceil", "keep-floor")
    faults = 0
    for ratio, rounding in itertools.product(sorted(ratios), roundings):
        config = RandomMask(ratio=float(ratio), rounding=rounding)
        faults += sum(config.count(n) != counted(ratio, n, rounding) for n in range(2, 401))
        mask = RandomSampler(config, (5, 7), 16, ground.seed).draw(_places(0, 20))
        masked = mask.masked.numpy()
        faults += int((masked.sum(1) != counted(ratio, 35, rounding)).sum())
        for row in range(20):
            faults += mask.masked_index[row].tolist() != np.flatnonzero(masked[row]).tolist()
            faults += mask.visible_index[row].tolist() != np.flatnonzero(~masked[row]).tolist()
    return Figure(faults, 0, "counts or indices that differ")


def units(ground: Ground) -> Figure:
    """Mask units of several patches (SimMIM sec. 3.2): masked whole or shown whole.

    32-pixel units on patches of 16 and 8 pixels, 60 % masked: ceil(0.6 · units) of them. Exact.
    """
    faults = 0
    for patch in (16, 8):
        side = 32 // patch
        config = RandomMask(ratio=0.6, unit=32, rounding="ceil")
        mask = RandomSampler(config, (3 * side, 5 * side), patch, ground.seed).draw(_places(0, 50))
        blocks = mask.masked.numpy().reshape(50, 3, side, 5, side).sum((2, 4))
        faults += int(((blocks != 0) & (blocks != side**2)).sum())
        faults += int(((blocks > 0).sum((1, 2)) != 9).sum())  # ceil(0.6 · 15)
    return Figure(faults, 0, "units or counts that differ")


def positions(ground: Ground) -> Figure:
    """Every patch is masked equally often: chi-square over the 196 places of 20,000 masks.

    A row masks M of N, so the sum of squares is scaled by (N - 1)/N and has N - 1 degrees of
    freedom. The limit is exceeded by chance once in a million.
    """
    draws, n = 20_000, 196
    mask = RandomSampler(RandomMask(), (14, 14), 16, ground.seed).draw(_places(0, draws))
    p = counted("0.4", n, "half-up") / n
    seen = mask.masked.numpy().sum(0)
    statistic = ((seen - draws * p) ** 2).sum() / (draws * p * (1 - p)) * (n - 1) / n
    return Figure(float(statistic), chi_square_limit(n - 1), "chi-square")


def pairs(ground: Ground) -> Figure:
    """Every pair of patches is masked together equally often, over 20,000 masks of 5 of 12.

    Chi-square with the exact covariance of the 66 pairs under masks that are uniform over all
    subsets, 65 degrees of freedom. The limit is exceeded by chance once in a million.
    """
    draws, n, m = 20_000, 12, 5
    mask = RandomSampler(RandomMask(ratio=m / n), (3, 4), 16, ground.seed).draw(_places(0, draws))
    masked = mask.masked.numpy()
    every = list(itertools.combinations(range(n), 2))
    seen = np.array([(masked[:, a] & masked[:, b]).sum() for a, b in every])
    # Probability that 2, 3 or 4 given places are all masked.
    together = {k: math.perm(m, k) / math.perm(n, k) for k in (2, 3, 4)}
    covariance = np.array(
        [[together[len({*one, *other})] - together[2] ** 2 for other in every] for one in every]
    )
    away = seen - draws * together[2]
    statistic = away @ np.linalg.pinv(draws * covariance, rcond=1e-9, hermitian=True) @ away
    return Figure(float(statistic), chi_square_limit(len(every) - 1), "chi-square")


def same_for_a_place(ground: Ground) -> Figure:
    """The mask of a place in the run: a function of (seed, t), whatever the micro-batch.

    32 places at once, in eights and one by one against the units of the highest scores computed in
    plain integers, which are other ones for another seed. Exact.
    """
    sampler = RandomSampler(RandomMask(), (6, 6), 16, ground.seed)
    count = counted("0.4", 36, "half-up")
    expected = np.zeros((32, 36), bool)
    for t in range(32):
        order = sorted(range(36), key=lambda unit, t=t: (-score(ground.seed, t, unit), unit))
        expected[t, order[:count]] = True
    faults = 0
    for rows in (32, 8, 1):
        parts = [sampler.draw(_places(first, rows)).masked for first in range(0, 32, rows)]
        faults += int((torch.cat(parts).numpy() != expected).sum())
    other = (
        RandomSampler(RandomMask(), (6, 6), 16, ground.seed + 1).draw(_places(0, 32)).masked.numpy()
    )
    faults += int((other == expected).all())
    return Figure(faults, 0, "patches that differ")


def order(ground: Ground) -> Figure:
    """The stream of images: each epoch has every image once, each epoch in another order.

    For 10 to 5,003 images over three epochs, and from the middle of one. Exact.
    """
    faults = 0
    for n in (10, 999, 1000, 5003):
        epochs = [[Order((n,), ground.seed).index(e * n + i) for i in range(n)] for e in range(3)]
        faults += sum(sorted(epoch) != list(range(n)) for epoch in epochs)
        faults += epochs[0] == epochs[1]
        faults += Order((n,), ground.seed).index(2 * n - 1) != epochs[1][-1]
    return Figure(faults, 0, "epochs that differ")


def chi_square_limit(freedom: int) -> float:
    """What chance exceeds once in a million (Wilson and Hilferty's approximation)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + _ODDS * math.sqrt(part)) ** 3


def _places(first: int, count: int) -> Batch:
    return Batch(images=torch.empty(count, 0), t=torch.arange(first, first + count))
