"""Random numbers by counter, against the published hash in plain integers."""

import itertools

import pytest
import torch

from simmim.tensors.counter import Purpose, hash64, torch_seed, uniform


def splitmix64(x: int) -> int:
    """Steele et al., 2014, in plain integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@pytest.mark.parametrize("seed", [0, 3, 2**63 + 5])
def test_random_numbers_are_those_of_the_hash(seed: int):
    key = splitmix64(seed) ^ Purpose.MASK
    expected = [
        [
            (splitmix64((splitmix64(splitmix64(key) ^ t) + j * 0x9E3779B97F4A7C15) % 2**64) >> 40)
            / 2**24
            for j in range(5)
        ]
        for t in (0, 1, 10**12)
    ]
    found = uniform(seed, Purpose.MASK, torch.tensor([0, 1, 10**12]), 5)
    assert found.tolist() == expected


def test_torch_seeds_stay_what_they_were():
    key = splitmix64(splitmix64(3) ^ Purpose.TORCH)
    # Frozen: a change here changes every run that is resumed with a newer version.
    assert torch_seed(3, 5) == 1231097788274395369 == splitmix64(key ^ 5) >> 1


def test_no_two_purposes_share_a_key():
    # Of every seed and place: the crop of an image must not follow from the noise of its mask.
    places = itertools.product(Purpose, (0, 3, 2**64 - 1), (0, 1, 2, 10**12))
    keys = [hash64(seed, purpose, t) for purpose, seed, t in places]
    assert len({*Purpose}) == len(Purpose.__members__)
    assert len(set(keys)) == len(keys)


def test_one_hash_makes_the_numbers_of_tensors_and_of_integers():
    numbers = uniform(3, Purpose.AUGMENT, torch.tensor([9]), 1)
    assert int(numbers[0, 0] * 2**24) == hash64(3, Purpose.AUGMENT, 9, 0) >> 40
