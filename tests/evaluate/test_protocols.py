"""Attentive probing, few labels, blocks, and how sure the figures are."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest

from simmim.evaluate.attentive import AttentiveHead, attentive
from simmim.evaluate.estimate import Estimate
from simmim.evaluate.features import extract
from simmim.evaluate.fewshot import SHOTS, draw_rows
from simmim.evaluate.probe import balanced_accuracy, linear
from simmim.evaluate.protocols import Protocols
from simmim.evaluate.readings import Readings, read
from simmim.interop.load import LoadedEncoder
from simmim.models.encoder import Encoder

from .conftest import PIXELS


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (96, 1), (200, 2), (24, 1)])
def test_an_attentive_head_is_attention_of_one_query_over_keys_and_values(width: int, heads: int):
    head = AttentiveHead(width, 5, seed=3)
    torch.nn.init.normal_(head.top.weight)
    x = torch.randn(4, 7, width)
    assert head.keys.shape == (heads, width // heads, width)
    query = head.query.expand(4, -1, -1)[:, :, None]  # B H 1 d
    keys, values = (
        F.linear(x, weight.flatten(0, 1)).unflatten(2, (heads, -1)).transpose(1, 2)
        for weight in (head.keys, head.values)
    )
    seen = F.scaled_dot_product_attention(query, keys, values)  # B H 1 d
    torch.testing.assert_close(head(x), head.top(seen.flatten(1)), atol=1e-4, rtol=1e-4)
    mean, variance = torch.randn(width), torch.rand(width) + 0.5
    moved, expected = x * (variance + 1e-6).sqrt() + mean, head(x)
    head.standardise(mean, variance)
    torch.testing.assert_close(head(moved), expected, atol=1e-4, rtol=1e-4)


def test_first_weights_are_those_of_a_linear_layer_and_a_small_query():
    head = AttentiveHead(128, 5, seed=0)
    bound = 128**-0.5
    for weight in (head.keys, head.values):
        assert float(weight.detach().abs().max()) == pytest.approx(bound, rel=1e-3)
        assert abs(float(weight.detach().mean())) < bound / 20
    assert 0.015 < float(head.query.detach().std()) < 0.022
    assert not torch.equal(head.keys, head.values)
    assert not torch.equal(head.query, AttentiveHead(128, 5, seed=1).query)


def pairs(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two tokens among noise, whose mean is 0 in both classes: (u + v, −u − v), (u − v, v − u)."""
    tokens = rng.normal(0, 0.1, (count, 6, 16)).astype("f4")
    labels = rng.integers(0, 2, count)
    u, v = 3 * np.eye(16)[0], 3 * np.eye(16)[1]
    for row, label in enumerate(labels):
        first, second = rng.permutation(6)[:2]
        token = u - v if label else u + v
        tokens[row, first] += token
        tokens[row, second] -= token
    return tokens, labels


def test_attention_sees_what_the_mean_of_the_tokens_cannot_and_twice_the_same(monkeypatch):
    monkeypatch.setattr("simmim.evaluate.attentive.STEPS", 120)
    monkeypatch.setattr("simmim.evaluate.attentive.RATES", (1e-5, 1e-2))
    rng = np.random.default_rng(0)
    (train, labels), (test, truth) = pairs(rng, 240), pairs(rng, 200)
    assert linear(train.mean(1), labels, test.mean(1), truth, classes=2).accuracy < 0.65
    told: list[float] = []
    found = attentive(train, labels, test, truth, classes=2, say=told.append)
    assert found.accuracy > 0.9
    assert told == sorted(told)
    assert told[-1] == 1
    # Neither the rate nor anything else is chosen by the labels that are asked about.
    again = attentive(train, labels, test, 1 - truth, classes=2)
    assert np.array_equal(again.probabilities, found.probabilities)
    # Channels of any scale and offset are the same to it.
    scale, shift = np.logspace(-1, 1, 16), np.arange(16)
    moved = [(x * scale + shift).astype("f4") for x in (train, test)]
    other = attentive(moved[0], labels, moved[1], truth, classes=2)
    assert (other.predictions == found.predictions).mean() > 0.97


def test_a_class_of_one_image_is_learned_from_and_the_middle_rate_is_taken(monkeypatch):
    monkeypatch.setattr("simmim.evaluate.attentive.STEPS", 20)
    tokens = np.random.default_rng(0).normal(size=(3, 4, 8)).astype("f4")
    labels = np.arange(3)
    assert attentive(tokens, labels, tokens, labels, classes=4).accuracy == 1


def test_draws_are_nested_and_differ():
    labels = np.repeat([0, 1, 3], [40, 3, 30])
    for draw in (1, 2):
        drawn = [set(draw_rows(labels, each, draw, 7).tolist()) for each in SHOTS]
        for each, rows in zip(SHOTS, drawn, strict=True):
            counts = np.bincount(labels[list(rows)], minlength=4)
            assert counts.tolist() == [min(each, 40), min(each, 3), 0, min(each, 30)]
        assert all(few < more for few, more in itertools.pairwise(drawn))
    assert set(draw_rows(labels, 10, 1, 7)) != set(draw_rows(labels, 10, 2, 7))
    assert set(draw_rows(labels, 10, 1, 7)) != set(draw_rows(labels, 10, 1, 8))


def readings(rng: np.random.Generator, count: int, telling: int) -> Readings:
    """Four blocks of which one tells the class."""
    labels = np.arange(count) % 3
    blocks = [rng.normal(size=(count, 8)).astype("f4") for _ in range(4)]
    blocks[telling][:, :3] += 4 * np.eye(3)[labels]
    return Readings(labels, blocks[0], blocks)


def test_the_best_block_is_found_on_the_training_images_alone():
    rng = np.random.default_rng(1)
    how = Protocols(classes=3, names=frozenset(), blocks=True, k=5, seed=0)
    train = readings(rng, 90, telling=2)
    for telling in (2, 0):
        test = readings(rng, 60, telling)
        found = how.measure(train, test, lambda *_: None).blocks
        assert [block.number for block in found.values()] == [3, 3]
        for block in found.values():
            assert block.left_out[2].value > 0.9
            assert max(block.left_out[n].value for n in (0, 1, 3)) < 0.7
            assert (block.result.accuracy.value > 0.9) == (telling == 2)


def test_what_is_read_is_what_the_encoder_gives(encoder: Encoder, stripes):
    loaded = LoadedEncoder(encoder, PIXELS).eval()
    images = stripes("some", 5)
    found = read(loaded, images, blocks=True, tokens=True, batch=2)
    assert found.labels.tolist() == images.labels
    assert np.array_equal(found.pooled, extract(loaded, images, batch=2).features)
    assert found.tokens is not None
    np.testing.assert_allclose(found.tokens.mean(1), found.pooled, atol=1e-5)
    root = images.paths.infos[0].parts[0]
    views = torch.stack([loaded.transform(f"{root}/{name}") for name in images.paths])
    for number, block in enumerate(found.blocks):
        with torch.no_grad():
            x = encoder.features(views, (number,)).layers[0]
        x = (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True, correction=0)
        np.testing.assert_allclose(block, x.mean(1), atol=1e-3)


@pytest.mark.parametrize(("right", "of"), [(0, 12), (5, 12), (12, 12), (1, 1), (340, 372)])
def test_accuracy_has_the_exact_binomial_interval(right: int, of: int):
    expected = binomtest(right, of).proportion_ci(0.95, "exact")
    found = Estimate.of_count(right, of)
    assert found == pytest.approx((right / of, expected.low, expected.high))


def test_balanced_accuracy_has_the_interval_of_a_plain_bootstrap():
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 1, 3], 80, p=[0.7, 0.25, 0.05])
    predictions = np.where(rng.random(80) < 0.6, labels, rng.integers(0, 4, 80))
    found = Estimate.of_classes(labels, predictions, 4, seed=0)
    assert found.value == balanced_accuracy(labels, predictions, 4)
    drawn = [rng.integers(0, 80, 80) for _ in range(4000)]
    means = [balanced_accuracy(labels[rows], predictions[rows], 4) for rows in drawn]
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose(found[1:], expected, atol=0.02)
    assert Estimate.of_classes(labels, predictions, 4, seed=0) == found


def test_draws_have_the_interval_of_student():
    found = Estimate.of_draws([0.1, 0.2, 0.3])
    assert found == pytest.approx((0.2, 0.2 - 0.24841, 0.2 + 0.24841), abs=1e-4)
    assert str(Estimate.of_draws([0.25])) == "25.0% (nan … nan)"
