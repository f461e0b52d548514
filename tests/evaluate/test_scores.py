import numpy as np
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

from simmim.evaluate.scores import score_numbers, score_tags


def test_figures_of_tags_and_numbers_are_scikit_learns(rng: np.random.Generator):
    labels = (rng.random((50, 4)) < 0.3).astype(int)
    shares = (0.5 * labels + rng.random((50, 4))) / 1.5
    found = score_tags(labels, shares)
    assert found.mean_ap == average_precision_score(labels, shares, average="macro")
    assert found.f1 == f1_score(labels, shares >= 0.5, average="micro")
    assert found.f1_macro == f1_score(labels, shares >= 0.5, average="macro")
    # A class that no image is of has no average precision, and no part in the means.
    labels = np.insert(labels, 1, 0, axis=1)
    wider = score_tags(labels, np.insert(shares, 1, 0.2, axis=1))
    assert (wider.mean_ap, wider.f1_macro) == (found.mean_ap, found.f1_macro)
    assert wider.by_class[1] is None

    truth = rng.normal(size=30)
    told = truth + 0.3 * rng.normal(size=30)
    numbers = score_numbers(truth, told)
    assert numbers.r2 == r2_score(truth, told)
    assert numbers.mae == mean_absolute_error(truth, told)
    assert np.isnan(score_numbers(truth[:1], told[:1]).r2)
