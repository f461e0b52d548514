import numpy as np
import pytest

from simmim.data.loading.order import Order, permute
from simmim.tensors.counter import hash64


def test_the_hash_and_the_orders_are_those_of_the_first_release():
    keys = [(0,), (1, 2, 3), (-1,), (0, 0)]
    assert [hash64(*key) for key in keys] == [
        0xE220A8397B1DCDAF,  # the first output of splitmix64 with seed 0
        0xD0734750FDE362B3,
        0xE4D971771B652C20,
        0xA706DD2F4D197E6F,
    ]
    assert [permute(i, 10, 0, 0) for i in range(10)] == [1, 6, 5, 4, 8, 3, 7, 9, 2, 0]
    assert [permute(i, 5000, 7, 3) for i in range(4)] == [4041, 3919, 2884, 4942]
    places = (0, 1, 1_234_566, 1_234_567, 10**10)
    assert [Order((1_234_567,), 42).index(t) for t in places] == [
        *(473530, 1134476, 225057, 569694, 105935),
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 999, 1000, 1001, 1024, 4999, 10007])
def test_an_epoch_shows_every_image_once(n: int):
    for epoch in (0, 1):
        epochs = [Order((n,), 5).index(epoch * n + i) for i in range(n)]
        assert sorted(epochs) == list(range(n))
    assert n < 4 or epochs != [Order((n,), 5).index(i) for i in range(n)]


@pytest.mark.parametrize("n", [100, 1200])
def test_positions_and_neighbours_are_uniform_over_epochs(n: int):
    """Chi-square of the image at a place, and of the step from a place to the next."""
    epochs, bins = 1500, 50
    first = np.array([permute(7, n, 1, epoch) for epoch in range(epochs)])
    second = np.array([permute(8, n, 1, epoch) for epoch in range(epochs)])
    for values in (first, second, (second - first) % n):
        counts = np.bincount(values * bins // n, minlength=bins)
        chi = ((counts - epochs / bins) ** 2 / (epochs / bins)).sum()
        assert 15 < chi < 95  # 49 degrees of freedom: mean 49, deviation 10
