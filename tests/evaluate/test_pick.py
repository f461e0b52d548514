import numpy as np
import pytest

from simmim.evaluate import pick
from simmim.evaluate.pick import diverse, doubts


def clusters(rng: np.random.Generator, sizes: list[int], width: int = 16) -> np.ndarray:
    """Tight clusters in random directions."""
    middles = rng.normal(size=(len(sizes), width))
    rows = [
        middle + 0.05 * rng.normal(size=(n, width))
        for middle, n in zip(middles, sizes, strict=True)
    ]
    return np.concatenate(rows)


def test_one_of_each_cluster_is_chosen_the_largest_first(rng: np.random.Generator):
    sizes = [40, 10, 30, 20]
    of = np.repeat(range(4), sizes)
    chosen, stands_for = diverse(clusters(rng, sizes), np.empty((0, 16)), 4, seed=0)
    assert sorted(of[chosen]) == [0, 1, 2, 3]
    assert dict(zip(of[chosen].tolist(), stands_for.tolist(), strict=True)) == dict(
        enumerate(sizes)
    )


def test_what_is_known_already_is_not_chosen_again(rng: np.random.Generator):
    features = clusters(rng, [40, 10, 30, 20])
    of = np.repeat(range(4), [40, 10, 30, 20])
    known = features[[0, 5, 50, 55]]  # of the first cluster and the third
    chosen, _ = diverse(features, known, 2, seed=0)
    assert sorted(of[chosen]) == [1, 3]


def test_the_choice_is_that_of_the_greedy_rule_written_out(rng: np.random.Generator):
    features = rng.normal(size=(60, 5))
    chosen, _ = diverse(features, np.empty((0, 5)), 12, seed=0)
    distances = ((features[:, None] - features) ** 2).sum(2)
    near, expected = np.full(60, distances.max()), []
    for _ in range(12):
        sums = np.minimum(distances, near).sum(1)
        expected.append(int(sums.argmin()))
        near = np.minimum(near, distances[expected[-1]])
    assert chosen.tolist() == expected


def test_of_very_many_images_a_sample_is_compared(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pick, "MOST", 50)
    features = rng.normal(size=(200, 5))
    first, again, other = (
        diverse(features, np.empty((0, 5)), 10, seed)[0].tolist() for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(set(first)) == 10


def test_all_may_be_asked_for_even_where_images_are_alike():
    chosen, stands_for = diverse(np.ones((5, 3)), np.ones((2, 3)), 5, seed=0)
    assert sorted(chosen) == [0, 1, 2, 3, 4]
    assert stands_for.sum() == 5


def test_images_that_known_classes_leave_in_doubt_count_more(rng: np.random.Generator):
    """Two known classes on a line: what lies between them is in doubt, what lies beyond is not."""
    along = np.linspace(-3, 3, 61)[:, None] * np.array([[1.0, 0, 0]])
    features = along + 0.01 * rng.normal(size=(61, 3))
    known = np.array([[-2.0, 0, 0], [-2.1, 0, 0], [2.0, 0, 0], [2.1, 0, 0]])
    found = doubts(features, known, np.array([0, 0, 1, 1]), classes=2)
    assert found is not None
    assert found[30] > 0.99
    assert found[0] == pytest.approx(found[-1], abs=0.01)
    assert found[0] == pytest.approx(found.min(), abs=0.005)
    assert doubts(features, known, np.array([0, 0, 0, -1]), classes=2) is None

    (row,), _ = diverse(features, known, 1, seed=0, weights=(found > 0.99).astype(float))
    assert abs(along[row, 0]) < 0.5
