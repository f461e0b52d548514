"""What comes when: permutations that are computed, not stored.

Own code, since neither numpy's nor torch's streams are promised across versions; the tests hold
frozen values.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from simmim.errors import DataError
from simmim.tensors.counter import WORD, Purpose, hash64, mix64

ROUNDS = 6
SMALL = 1000


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
            left = (left + mix64((right + keys[i]) & WORD)) % a
            right = (right + mix64((left + keys[i + 1]) & WORD)) % b
        position = left * b + right
        if position < n:
            return position


@dataclass(frozen=True)
class Order:
    """The endless stream of images: epochs' permutations, end to end.

    With weights, an epoch has as many places as there are images, shared among the sources by
    weight; each source goes through its own permutations, as far as its share takes it, and goes
    on there in the next epoch. So a source with a small share shows other images in each epoch.

    Attributes:
        counts: Images of each source; in the image set they lie one source after another.
        seed: Seed of the run.
        weights: Shares of the sources, in any unit; none: every image comes once in an epoch.
    """

    counts: tuple[int, ...]
    seed: int
    weights: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """Places of an epoch: all images."""
        return sum(self.counts)

    def index(self, t: int) -> int:
        """Return the image at place ``t`` of the stream.

        Raises:
            DataError: There are no images.
        """
        if not self.count:
            raise DataError("there are no images to draw from.")
        epoch, position = divmod(t, self.count)
        place = permute(position, self.count, self.seed, epoch)
        if not self.weights:
            return place
        source = bisect_right(self._ends, place)
        share, count = self._shares[source], self.counts[source]
        first = self._ends[source] - share
        turn, position = divmod(epoch * share + place - first, count)
        seed = hash64(self.seed, Purpose.MIX, source)
        return sum(self.counts[:source]) + permute(position, count, seed, turn)

    def replacement(self, t: int, attempt: int) -> int:
        """Return the image that stands in at place ``t``, of any source; attempts from 1 on."""
        return hash64(self.seed, Purpose.REPLACE, t, attempt) % self.count

    @cached_property
    def _shares(self) -> list[int]:
        """Places of each source in an epoch, by the method of largest remainders."""
        exact = [self.count * weight / sum(self.weights) for weight in self.weights]
        shares = [math.floor(value) for value in exact]
        order = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
        for i in order[: self.count - sum(shares)]:
            shares[i] += 1
        return shares

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self._shares))


@lru_cache(maxsize=64)
def _sorted(n: int, seed: int, epoch: int) -> list[int]:
    return sorted(range(n), key=lambda i: hash64(seed, Purpose.ORDER, epoch, i))


@lru_cache(maxsize=16)
def _round_keys(seed: int, epoch: int) -> list[int]:
    return [hash64(seed, Purpose.ORDER, epoch, i) for i in range(ROUNDS)]
