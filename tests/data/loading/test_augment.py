import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from simmim.config.augment import AugmentConfig
from simmim.config.resolved import PixelFormat
from simmim.data.formats.decode import UnreadableError, inspect, read_pixels
from simmim.data.formats.image_file import ImageFile, Region, from_array
from simmim.data.loading.augment import Size, choose_shrink, plain_view, random_view, whole_view

PLACES = np.stack(np.meshgrid(np.arange(80), np.arange(120), indexing="ij"), -1)  # (y, x)
WHOLE = AugmentConfig(scale=(1.0, 1.0), ratio=(1.5, 1.5), flip=0.0)


def pixels(channels: int, high: float = 255.0) -> PixelFormat:
    one = (1.0,) * channels
    depth = "8-bit" if high == 255 else "float"
    return PixelFormat(
        channels=channels,
        low=(0.0,) * channels,
        high=(high,) * channels,
        mean=one,
        std=one,
        depth=depth,
    )


def view(array: np.ndarray, config: AugmentConfig, size: Size, key: tuple[int, ...]):
    kind = pixels(array.shape[2], 255.0 if array.dtype == np.uint8 else 120.0)
    return random_view(from_array(array), kind, config, size, key)


def centre(array: np.ndarray, size: Size) -> torch.Tensor:
    kind = pixels(array.shape[2], 255.0 if array.dtype == np.uint8 else 120.0)
    return plain_view(from_array(array), kind, size)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture (h, w, 3) without detail that a JPEG would lose."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = [np.sin(y / 160 + x / 240), np.cos(x / 200), np.sin(y / 280 - x / 360)]
    return np.rint(127 + 100 * np.stack(planes, -1)).astype(np.uint8)


def jpeg(array: np.ndarray, **arguments: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array.squeeze()).save(stream, "JPEG", **{"quality": 95, **arguments})
    return stream.getvalue()


def test_a_view_is_a_function_of_its_key():
    array = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    before = array.copy()
    first = view(array, AugmentConfig(), (32, 48), (0, 2, 7, 0))
    assert first.shape == (3, 32, 48)
    assert first.dtype == torch.uint8
    assert torch.equal(first, view(array, AugmentConfig(), (32, 48), (0, 2, 7, 0)))
    assert not torch.equal(first, view(array, AugmentConfig(), (32, 48), (0, 2, 8, 0)))
    assert np.array_equal(array, before)


def test_crops_have_the_shares_and_shapes_asked_for():
    """The values are coordinates, so a view tells where its crop lay."""
    array = PLACES.astype(np.float32)
    config, flipped, shares, ratios = AugmentConfig(), 0, [], []
    for t in range(400):
        seen = view(array, config, (40, 40), (3, t))
        height, width = (float(seen[i].mean((1 - i,)).diff().mean()) * 40 for i in (0, 1))
        flipped += width < 0
        shares.append(height * abs(width) / (80 * 120))
        ratios.append(abs(width) / height)
    assert 160 < flipped < 240
    assert 0.17 < min(shares) < 0.25
    assert 0.8 < max(shares) < 1.02
    assert 0.7 < min(ratios) < 0.8
    assert 1.28 < max(ratios) < 1.42


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_is_antialiased(interpolation: str):
    lines = np.zeros((80, 120, 1), np.uint8)
    lines[:, ::2] = 255
    config = AugmentConfig(
        scale=(1.0, 1.0), ratio=(1.5, 1.5), flip=0.0, interpolation=interpolation
    )
    seen = view(lines, config, (20, 30), (0,)).float()
    assert (seen[:, 2:-2, 2:-2] - 127.5).abs().max() < 6


@pytest.mark.parametrize("size", [(20, 30), (57, 61), (80, 120), (200, 300)])
def test_resized_values_are_those_of_pillow_and_of_floats(size: Size):
    array = np.random.default_rng(1).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    seen = view(array, WHOLE, size, (0,)).permute(1, 2, 0).numpy().astype(int)
    height, width = size
    by_pillow = Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR)
    assert np.abs(seen - np.asarray(by_pillow)).max() <= 1
    planes = torch.from_numpy(array).permute(2, 0, 1)[None].double()
    exact = F.interpolate(planes, size=size, mode="bilinear", antialias=True)[0]
    assert np.abs(seen - exact.permute(1, 2, 0).numpy()).max() <= 1.5


def test_an_extreme_shape_still_gives_a_view():
    for shape in ((1, 4000, 3), (4000, 1, 3), (1, 1, 3)):
        assert view(np.ones(shape, np.uint8), AugmentConfig(), (8, 8), (0,)).sum() == 192
        assert centre(np.ones(shape, np.uint8), (8, 8)).sum() == 192


def test_a_plain_view_is_the_centre_scaled_to_cover():
    array = PLACES.astype(np.float32)
    seen = centre(array, (40, 40))
    assert seen.shape == (2, 40, 40)
    assert float(seen[0].mean()) == pytest.approx(39.5, abs=0.01)
    assert float(seen[1].mean()) == pytest.approx(59.5, abs=0.01)
    assert float(seen[1].max() - seen[1].min()) == pytest.approx(78, abs=0.6)
    same = centre(PLACES.astype(np.uint8), (80, 120))
    assert np.array_equal(same.permute(1, 2, 0).numpy(), PLACES)


def test_grey_becomes_three_equal_channels():
    array = np.arange(100, dtype=np.uint8).reshape(10, 10, 1)
    seen = random_view(from_array(array), pixels(3), WHOLE, (7, 7), (0,))
    assert seen.shape == (3, 7, 7)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[:1], random_view(from_array(array), pixels(1), WHOLE, (7, 7), (0,)))


def test_channels_that_do_not_fit_are_refused():
    array = np.zeros((10, 10, 5), np.uint8)
    with pytest.raises(UnreadableError, match="5 channels"):
        random_view(from_array(array), pixels(3), WHOLE, (7, 7), (0,))


def header(height: int, width: int) -> ImageFile:
    return ImageFile("JPEG", height, width, 3, "uint8", lambda _: np.zeros(0), (1, 2, 4, 8))


@pytest.mark.parametrize(
    ("box", "size", "shrink", "small"),
    [
        ((0, 0, 3000, 4000), (224, 224), 8, (0, 0, 375, 500)),
        ((0, 0, 1792, 1792), (224, 224), 8, (0, 0, 224, 224)),
        ((0, 0, 1791, 1792), (224, 224), 8, (0, 0, 224, 224)),  # 223.9 pixels round to 224
        ((0, 0, 1787, 1792), (224, 224), 4, (0, 0, 447, 448)),
        ((0, 0, 1792, 1792), (225, 224), 4, (0, 0, 448, 448)),
        ((3, 1, 449, 448), (224, 224), 2, (2, 1, 224, 224)),
        ((2, 1, 446, 448), (224, 224), 1, (2, 1, 446, 448)),
        ((7, 9, 300, 3000), (224, 224), 1, (7, 9, 300, 3000)),
    ],
)
def test_the_largest_shrink_that_leaves_the_view_its_pixels(
    box: Region, size: Size, shrink: int, small: Region
):
    assert choose_shrink(header(3000, 4000), box, size) == (shrink, small)


def test_a_shrunk_box_lies_in_the_picture_and_where_it_was():
    rng = np.random.default_rng(2)
    for _ in range(2000):
        height, width = (int(n) for n in rng.integers(20, 900, 2))
        rows, columns = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        box = (
            int(rng.integers(0, height - rows + 1)),
            int(rng.integers(0, width - columns + 1)),
            rows,
            columns,
        )
        size = tuple(int(n) for n in rng.integers(1, 60, 2))
        shrink, (top, left, h, w) = choose_shrink(header(height, width), box, size)
        assert (shrink == 1) or (h >= size[0] and w >= size[1])
        assert top + h <= -(-height // shrink)
        assert left + w <= -(-width // shrink)
        edges = np.array([top, left, top + h, left + w]) * shrink
        exact = np.array([box[0], box[1], box[0] + rows, box[1] + columns])
        assert np.abs(edges - exact).max() <= shrink / 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("t", range(3))
def test_a_view_of_a_large_jpeg_is_that_of_the_whole_picture(orientation: int, t: int):
    """Decoding at a fraction, and of the upper rows alone, changes next to nothing."""
    # Where a mirrored side is no multiple of 8, the first of the smaller pixels is a part of one.
    array = smooth(801, 1203) if orientation in (1, 5) else smooth(800, 1200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(array, exif=exif.tobytes())
    opened = inspect(data)
    whole = from_array(read_pixels(opened))
    assert (whole.height, whole.width) == (opened.height, opened.width)
    config = AugmentConfig()
    seen, exact = (random_view(o, pixels(3), config, (64, 64), (t,)) for o in (opened, whole))
    difference = (seen.int() - exact.int()).abs().float()
    assert difference.mean() < 2
    assert difference.max() <= 6


def test_where_nothing_is_shrunk_a_view_of_a_jpeg_is_exact():
    rng = np.random.default_rng(3)
    array = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
    for extra in ({"subsampling": 2}, {"subsampling": 0}, {"progressive": True}):
        data = jpeg(array, **extra)
        opened = inspect(data)
        whole = from_array(read_pixels(opened))
        for t in range(20):
            views = (
                random_view(o, pixels(3), AugmentConfig(), (224, 224), (t,))
                for o in (opened, whole)
            )
            assert torch.equal(*views)


def test_a_whole_view_has_the_shape_asked_for():
    data = jpeg(smooth(800, 1200))
    seen = whole_view(inspect(data), pixels(3), (100, 150))
    assert seen.shape == (100, 150, 3)
    exact = np.asarray(Image.fromarray(smooth(800, 1200)).resize((150, 100), Image.Resampling.BOX))
    assert np.abs(seen.astype(int) - exact).mean() < 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_large_crops_come_in_strips_with_the_same_values(
    dtype: type, interpolation: str, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(0)
    high = int(np.iinfo(dtype).max)
    array = rng.integers(0, high, (301, 203, 3)).astype(dtype)
    depth = "8-bit" if dtype is np.uint8 else "16-bit"
    pixels = PixelFormat(
        channels=3, low=(0.0,) * 3, high=(high,) * 3, mean=(0.5,) * 3, std=(0.2,) * 3, depth=depth
    )
    config = AugmentConfig(interpolation=interpolation)  # type: ignore[arg-type]
    views = []
    for strip in (2**24, 203 * 3 * 40):
        monkeypatch.setattr("simmim.data.loading.augment.STRIP", strip)
        views.append(random_view(from_array(array), pixels, config, (32, 48), (1, 2)).float())
    assert (views[0] - views[1]).abs().max() <= (1 if dtype is np.uint8 else high * 1e-5)
