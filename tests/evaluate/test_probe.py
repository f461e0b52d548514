import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from simmim.errors import DataError
from simmim.evaluate.probe import balanced_accuracy, fit_layer, knn, linear


def clouds(
    rng: np.random.Generator, centres: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(rows) % len(centres)
    return (centres[labels] + rng.normal(size=(rows, centres.shape[1]))).astype("f4"), labels


def test_knn_votes_as_a_plain_loop_does():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 8)).astype("f4"), rng.normal(size=(25, 8)).astype("f4")
    labels, truth = rng.integers(0, 4, 60), rng.integers(0, 4, 25)
    expected = np.zeros((25, 4))
    for row, x in enumerate(test.astype("f8")):
        cosine = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in train.astype("f8")]
        for near in np.argsort(cosine)[::-1][:7]:
            expected[row, labels[near]] += np.exp(cosine[near] / 0.07)
    expected /= expected.sum(1, keepdims=True)

    found = knn(train, labels, test, truth, classes=4, k=7)

    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    assert found.predictions.tolist() == expected.argmax(1).tolist()
    assert found.accuracy == pytest.approx((expected.argmax(1) == truth).mean())


def test_knn_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    (train, labels), (test, truth) = (clouds(rng, rng.normal(size=(3, 8)), n) for n in (50, 40))
    whole = knn(train, labels, test, truth, classes=3)
    monkeypatch.setattr("simmim.evaluate.probe.SIMILARITIES", 150)
    np.testing.assert_allclose(
        knn(train, labels, test, truth, classes=3).probabilities, whole.probabilities, atol=1e-6
    )


@pytest.mark.parametrize("probe", [knn, linear])
def test_separate_classes_are_told_apart_and_shuffled_labels_are_not(probe):
    rng = np.random.default_rng(2)
    centres = 4 * rng.normal(size=(5, 16))
    train, labels = clouds(rng, centres, 300)
    test, truth = clouds(rng, centres, 500)

    assert probe(train, labels, test, truth, classes=5).accuracy == 1
    # One cloud, so that no group of neighbours shares whatever label it was given.
    train, test = rng.normal(size=(300, 16)).astype("f4"), rng.normal(size=(500, 16)).astype("f4")
    shuffled = probe(train, rng.permutation(labels), test, truth, classes=5)
    assert abs(shuffled.balanced_accuracy - 0.2) < 0.06


def test_linear_is_not_moved_by_scales_shifts_and_constants():
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(3, 8))
    (train, labels), (test, truth) = clouds(rng, centres, 90), clouds(rng, centres, 60)
    plain = linear(train, labels, test, truth, classes=3)

    def warped(x: np.ndarray) -> np.ndarray:
        scaled = x * np.logspace(-2, 2, 8) + 3
        return np.c_[scaled, np.full(len(x), 0.1)].astype("f4")

    moved = linear(warped(train), labels, warped(test), truth, classes=3)
    np.testing.assert_allclose(moved.probabilities, plain.probabilities, atol=1e-3)
    again = linear(train, labels, test, truth, classes=3)
    assert np.array_equal(again.probabilities, plain.probabilities)


@pytest.mark.parametrize("each", [1, 3])
def test_few_labels_and_absent_classes_work(each: int):
    rng = np.random.default_rng(4)
    centres = 3 * rng.normal(size=(10, 32))
    train, labels = clouds(rng, centres, 10 * each)
    train, labels = train[labels != 7], labels[labels != 7]
    train, labels = np.r_[train, train[:2]], np.r_[labels, labels[:2]]  # unequal classes
    test, truth = clouds(rng, centres, 100)

    found = linear(train, labels, test, truth, classes=10)

    assert (found.probabilities[:, 7] == 0).all()
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    assert found.accuracy >= 0.85
    assert found.balanced_accuracy == pytest.approx(
        balanced_accuracy_score(truth, found.predictions)
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_a_fitted_layer_takes_features_as_they_are(monkeypatch, classes: int):
    monkeypatch.setattr("simmim.evaluate.probe.STRENGTHS", (0.1,))
    rng = np.random.default_rng(8)
    x, labels = clouds(rng, rng.normal(size=(classes, 6)), 60)
    x = (x * np.logspace(-2, 2, 6) + 3).astype("f4")
    weight, bias = fit_layer(x, labels, classes=classes + 1, strength=0.1)
    logits = np.exp(x @ weight.T + bias)[:, :classes]
    expected = linear(x, labels, x, labels, classes=classes).probabilities
    np.testing.assert_allclose(logits / logits.sum(1, keepdims=True), expected, atol=1e-3)
    assert (weight[classes] == 0).all()
    assert bias[classes] == bias[:classes].min()


def test_a_single_class_is_certain():
    rng = np.random.default_rng(5)
    x, labels = rng.normal(size=(6, 4)).astype("f4"), np.full(6, 2)
    assert (linear(x, labels, x, labels, classes=3).probabilities[:, 2] == 1).all()


def test_balanced_accuracy_is_that_of_scikit_learn():
    rng = np.random.default_rng(6)
    labels = rng.choice([0, 1, 3], 200, p=[0.7, 0.25, 0.05])  # class 2 does not occur
    predictions = rng.integers(0, 4, 200)
    with pytest.warns(UserWarning, match="y_pred contains classes"):
        expected = balanced_accuracy_score(labels, predictions)
    assert balanced_accuracy(labels, predictions, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "at least one row"),
        (lambda x, y: (x * np.nan, y), "not finite"),
        (lambda x, y: (x, y + 3), "from 0 to 2, got 3 to 5"),
        (lambda x, y: (x[:, :3], y), "differ in width, 3 and 4"),
    ],
)
def test_what_cannot_be_probed_is_said(broken, message: str):
    x, y = np.random.default_rng(7).normal(size=(9, 4)).astype("f4"), np.arange(9) % 3
    for probe in (knn, linear):
        with pytest.raises(DataError, match=message):
            probe(*broken(x, y), x, y, classes=3)
