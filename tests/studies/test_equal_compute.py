import math

import numpy as np
import pytest

from simmim.errors import ConfigError
from simmim.studies.equal_compute import Pace, equal_steps, order


def paces(*flops: int) -> list[Pace]:
    return [Pace(each, 0.1) for each in flops]


def test_runs_have_the_same_flops_within_two_per_cent():
    costs = (1_000, 1_370, 3_310)
    steps = equal_steps(paces(*costs), 200)
    totals = [n * each for n, each in zip(steps, costs, strict=True)]
    assert steps[0] == 200
    assert max(totals) / min(totals) < 1.02


def test_runs_too_short_for_that_are_refused_with_the_steps_that_do():
    with pytest.raises(ConfigError, match="would have 10, and 25") as caught:
        equal_steps(paces(1_000, 2_000), 20)
    assert "--steps 50 or more" in str(caught.value)
    assert equal_steps(paces(1_000, 2_000), 50) == [50, 25]


def test_differences_are_taken_within_seeds():
    """All runs of a seed share its luck, which is far larger than the differences."""
    luck = np.array([0.0, 0.2, -0.2, 0.1])
    noise = 0.002 * np.array([[1, -1, 0, 0], [0, 1, -1, 0], [0, 0, 1, -1]])
    found = order(["a", "b", "c"], np.array([[0.3], [0.5], [0.4]]) + luck + noise)
    assert found.values == ["b", "c", "a"]
    assert found.sure
    assert found.rivals == []
    assert found.ahead == pytest.approx([0.1, 0.1], abs=0.002)
    assert "is recommended, and that is sure" in found.sentence("mask.ratio")


def test_the_probabilities_are_those_of_a_paired_t_test():
    one, other = np.array([0.50, 0.54, 0.49]), np.array([0.47, 0.48, 0.48])
    gap = one - other
    t = gap.mean() / (gap.std(ddof=1) / math.sqrt(3))
    # With two degrees of freedom, the two tails of t: 1 - t / sqrt(2 + t²).
    expected = 1 - t / math.sqrt(2 + t**2)
    found = order(["a", "b"], [one, other])
    assert found.steps == pytest.approx([expected])
    assert found.errors == pytest.approx([gap.std(ddof=1) / math.sqrt(3)])
    assert not found.sure


def test_who_may_be_as_good_is_named_where_it_is_not_sure():
    results = [[0.50, 0.52, 0.51], [0.51, 0.50, 0.51], [0.10, 0.11, 0.10]]
    found = order(["0.25", "0.4", "0.75"], results)
    assert found.values[0] == "0.25"
    assert found.rivals == ["0.4"]
    said = found.sentence("mask.ratio")
    assert "that is not sure (3 seeds each): as good may be 0.4." in said


def test_two_seeds_are_never_sure_and_one_claims_nothing():
    two = order(["a", "b"], [[0.5, 0.6], [0.4, 0.5]])
    assert not two.sure
    assert two.rivals == ["b"]
    assert "nothing is claimed" in order(["a", "b"], [[0.5], [0.4]]).sentence("x")
