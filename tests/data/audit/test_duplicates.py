"""Exact and near duplicates: what the hashes ignore, and that no close pair is missed."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim.data.audit.duplicates import (
    STEPS_BITS,
    WAVES_BITS,
    Hashes,
    close_pairs,
    exact_hash,
    find_exact,
    find_near,
    hash_image,
)


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[np.ndarray]:
    files = sorted(photos.rglob("*.jpg"))[:60]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def arrays(hashes: list[Hashes]) -> Hashes:
    bits = [np.array([h[i] for h in hashes], np.uint64) for i in range(4)]
    return Hashes(*bits, np.array([h.blank for h in hashes]))


def bits_of(a: int, b: int) -> int:
    return (int(a) ^ int(b)).bit_count()


def compressed(array: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


CHANGES = {
    "half the size": lambda a: np.asarray(
        Image.fromarray(a).resize((a.shape[1] // 2, a.shape[0] // 2), Image.Resampling.LANCZOS)
    ),
    "compressed": lambda a: compressed(a, 40),
    "brighter": lambda a: np.clip(a.astype(int) + 20, 0, 255).astype(np.uint8),
    "16 bits": lambda a: a.astype(np.uint16) * 257,
    "float": lambda a: (a / 255).astype(np.float32),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_near_and_other_photos_are_not(change: str, pictures: list[np.ndarray]):
    copies = [CHANGES[change](array) for array in pictures]
    hashes = arrays([hash_image(array) for array in [*pictures, *copies]])
    pairs = find_near(hashes, np.ones(2 * len(pictures), bool))
    wanted = {(len(pictures) + i, i) for i in range(len(pictures))}
    found = set(zip(pairs.later.tolist(), pairs.kept.tolist(), strict=True))
    assert len(found & wanted) >= 0.95 * len(wanted)
    assert found <= wanted
    assert not pairs.exact.any()


def test_the_exact_hash_hangs_on_values_shape_and_type():
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    other = array.copy()
    other[1, 2, 0] += 1
    hashes = {
        exact_hash(a) for a in (array, other, array.reshape(4, 2, 3), array.astype(np.uint16))
    }
    assert len(hashes) == 4
    assert exact_hash(np.asfortranarray(array)) == exact_hash(array)


def test_the_first_of_the_same_images_is_kept():
    exact = np.array([5, 7, 5, 9, 7, 5], np.uint64)
    pairs = find_exact(exact, np.array([1, 1, 1, 1, 1, 0], bool))
    assert pairs.later.tolist() == [2, 4]
    assert pairs.kept.tolist() == [0, 1]


def test_an_image_is_left_out_only_for_one_that_is_kept():
    # 0 and 1 differ in 4 bits, 1 and 2 in 4 others, 0 and 2 in 8: 2 is not near what is kept.
    waves = np.array([0, 0b1111, 0b11111111, 0b11111111], np.uint64)
    zero = np.zeros(4, np.uint64)
    hashes = Hashes(np.array([1, 2, 3, 3], np.uint64), waves, zero, zero, np.zeros(4, bool))
    pairs = find_near(hashes, np.ones(4, bool))
    assert pairs.later.tolist() == [1, 3]
    assert pairs.kept.tolist() == [0, 2]
    assert pairs.exact.tolist() == [False, True]


def test_what_is_the_same_as_a_left_out_image_names_the_kept_one():
    waves = np.array([0, 1, 1], np.uint64)
    zero = np.zeros(3, np.uint64)
    hashes = Hashes(np.array([1, 2, 2], np.uint64), waves, zero, zero, np.zeros(3, bool))
    pairs = find_near(hashes, np.ones(3, bool))
    assert list(zip(pairs.later.tolist(), pairs.kept.tolist(), strict=True)) == [(1, 0), (2, 0)]
    assert not pairs.exact.any()


def test_blank_images_are_like_no_others_unless_the_same():
    flat = [np.full((40, 40, 3), value, np.uint8) for value in (0, 0, 90, 255)]
    hashes = arrays([hash_image(array) for array in flat])
    assert hashes.blank.all()
    pairs = find_near(hashes, np.ones(4, bool))
    assert pairs.later.tolist() == [1]


def test_the_same_drawing_in_other_colours_is_another_image(rng: np.random.Generator):
    grey = rng.integers(60, 160, (8, 8, 1)).repeat(16, 0).repeat(16, 1)
    red, green = (
        np.concatenate([grey + shift for shift in s], 2) for s in ((60, 0, 0), (0, 60, 0))
    )
    hashes = arrays([hash_image(a.astype(np.uint8)) for a in (red, green)])
    assert bits_of(hashes.waves[0], hashes.waves[1]) <= WAVES_BITS
    assert not len(find_near(hashes, np.ones(2, bool)).later)


@pytest.mark.parametrize("count", [300, 20_000])
def test_no_close_pair_is_missed(count: int, rng: np.random.Generator):
    waves = rng.integers(0, 1 << 64, count, np.uint64)
    steps = rng.integers(0, 1 << 64, count, np.uint64)
    planted = set()
    for i in range(0, 200, 2):
        places = [int(p) for p in rng.choice(64, WAVES_BITS + (i % 4 == 2), replace=False)]
        waves[i + 1] = waves[i] ^ np.uint64(sum(1 << p for p in places))
        places = [int(p) for p in rng.choice(64, STEPS_BITS + (i % 8 == 4), replace=False)]
        steps[i + 1] = steps[i] ^ np.uint64(sum(1 << p for p in places))
        if i % 4 != 2 and i % 8 != 4:
            planted.add((i, i + 1))
    found = {
        (min(a, b), max(a, b))
        for left, right, _ in close_pairs(waves, steps, np.zeros(count, np.uint64))
        for a, b in zip(left.tolist(), right.tolist(), strict=True)
    }
    assert planted == {pair for pair in found if pair[1] < 200}
    if count < 1000:  # all against all, as an independent count
        far = np.bitwise_count(waves[:, None] ^ waves) <= WAVES_BITS
        far &= np.bitwise_count(steps[:, None] ^ steps) <= STEPS_BITS
        assert found == {(int(a), int(b)) for a, b in np.argwhere(far) if a < b}


def test_nothing_and_one_image_have_no_duplicates():
    for count in (0, 1):
        zero = np.zeros(count, np.uint64)
        hashes = Hashes(zero, zero, zero, zero, np.zeros(count, bool))
        assert not len(find_near(hashes, np.ones(count, bool)).later)


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_a_few_hot_pixels_hide_no_duplicate_and_no_blank_image(
    kind: str, pictures: list[np.ndarray]
):
    dim = (pictures[0].mean(2, keepdims=True) / 4 + 100).astype(kind)
    hot, black = dim.copy(), np.full((64, 64, 1), 100).astype(kind)
    hot[20, 30] = hot[50, 9] = 65535
    hashes = arrays([hash_image(dim), hash_image(hot), hash_image(black)])
    assert hashes.blank.tolist() == [False, False, True]
    pairs = find_near(hashes, np.ones(3, bool))
    assert (pairs.later.tolist(), pairs.kept.tolist()) == ([1], [0])
