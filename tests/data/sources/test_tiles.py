"""Tiles: where they lie, which are left out, and that little is read for them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim.data.formats.decode import UnreadableError, decode, inspect, read_pixels
from simmim.data.formats.large import inspect_file
from simmim.data.sources.archive import ZipSource
from simmim.data.sources.folder import FolderSource
from simmim.data.sources.index import build
from simmim.data.sources.listing import Listing
from simmim.data.sources.source import Source
from simmim.data.sources.tiles import TileSource, grid
from simmim.errors import ConfigError, DataError

RNG = np.random.default_rng(11)


def cut(sources: Path | list[Source], side: int, work: Path) -> Listing:
    sources = [FolderSource(sources)] if isinstance(sources, Path) else sources
    bases = [build(source, work / f"base{k}.idx") for k, source in enumerate(sources)]
    return Listing([build(TileSource(Listing(bases), side), work / "tiles.idx")])


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def test_the_grid_covers_an_image_with_tiles_of_full_size():
    assert grid(100, 200, 100) == [(0, 0, 100, 100), (0, 100, 100, 100)]
    assert grid(250, 90, 100) == [(0, 0, 100, 90), (100, 0, 100, 90), (150, 0, 100, 90)]
    for height, width, side in ((101, 99, 100), (640, 480, 64), (33, 1000, 50)):
        seen = np.zeros((height, width), int)
        for top, left, rows, columns in grid(height, width, side):
            assert (rows, columns) == (min(side, height), min(side, width))
            seen[top : top + rows, left : left + columns] += 1
        assert seen.shape == (height, width)
        assert seen.min() == 1


def test_tiles_of_every_format_are_parts_of_their_image(images: Path, tmp_path: Path):
    color = noise(150, 230)
    deep = RNG.integers(0, 4096, (150, 230, 5), dtype=np.uint16)
    Image.fromarray(color).save(images / "a.png")
    Image.fromarray(color).save(images / "b.jpg", quality=95)
    tifffile.imwrite(
        images / "c.tif", deep, photometric="minisblack", planarconfig="contig", tile=(32, 32)
    )
    np.save(images / "d.npy", deep)
    Image.fromarray(color[:60, :64]).save(images / "small.png")
    tiles = cut(images, 64, tmp_path)
    assert len(tiles) == 4 * 3 * 4 + 1
    assert tiles[0] == "a.png@0,0,64x64"
    assert tiles[11] == "a.png@86,166,64x64"
    assert tiles[len(tiles) - 1] == "small.png"
    for i in list(RNG.permutation(len(tiles))):
        name, _, place = tiles[i].partition("@")
        whole = decode((images / name).read_bytes())
        top, left = map(int, place.split(",")[:2]) if place else (0, 0)
        part = whole[top : top + 64, left : left + 64]
        opened = tiles.open(i)
        assert (opened.height, opened.width, opened.channels) == part.shape
        assert np.array_equal(read_pixels(opened), part)
        assert np.array_equal(decode(tiles.read(i)), part)
        assert opened.window is None or np.array_equal(
            opened.window((5, 6, 7, 8)), part[5:12, 6:14]
        )


def test_tiles_of_several_sources_keep_their_names_and_labels(images: Path, tmp_path: Path):
    import zipfile

    (images / "cat").mkdir()
    Image.fromarray(noise(40, 70)).save(images / "cat" / "a.png")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(images / "cat" / "a.png", "cat/a.png")
    (images / "odd@0,0,5x5").mkdir()
    Image.fromarray(noise(20, 20)).save(images / "odd@0,0,5x5" / "a.png")
    tiles = cut(
        [FolderSource(images), ZipSource(str(tmp_path / "b.zip"), [tmp_path / "b.zip"])],
        *(32, tmp_path),
    )
    assert len(set(tiles)) == len(tiles) == 2 * 6 + 1
    whole = decode((images / "cat" / "a.png").read_bytes())
    for i, name in enumerate(tiles):
        if "cat" in name:
            top, left = map(int, name.split("@")[1].split(",")[:2])
            array = read_pixels(tiles.open(i))
            assert np.array_equal(array, whole[top : top + 32, left : left + 32])


def blank_left(images: Path, tmp_path: Path) -> set[str]:
    return {name.split("@")[1] for name in cut(images, 64, tmp_path)}


def test_flat_tiles_are_left_out_and_small_structures_kept(images: Path, tmp_path: Path):
    paper = np.clip(RNG.normal(240, 1.5, (256, 1024, 3)), 0, 255).astype(np.uint8)
    paper[:, :256] = noise(256, 256)  # texture
    paper[20:24, 300:304] = 90  # 16 pixels: an object
    paper[100, 600:603] = 100  # 3 pixels: dust
    Image.fromarray(paper).save(images / "slide.png")
    tiles = cut(images, 256, tmp_path)
    assert list(tiles) == ["slide.png@0,0,256x256", "slide.png@0,256,256x256"]
    assert tiles.infos[0].notes[0] == "2 of 4 tiles are blank and left out"


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_the_range_in_use_decides_what_is_flat(bits: int, images: Path, tmp_path: Path):
    high = 2**bits - 1
    array = np.full((64, 192), high // 2, np.uint16)
    array[:, :64] = RNG.integers(0, high, (64, 64), endpoint=True)
    array[:, 64:128] += RNG.choice([-high // 50, high // 50], (64, 64)).astype(np.uint16)  # 2 %
    array[:, 128:] += RNG.choice([-high // 200, high // 200], (64, 64)).astype(np.uint16)  # 0.5 %
    tifffile.imwrite(images / "x.tif", array, photometric="minisblack")
    assert blank_left(images, tmp_path) == {"0,0,64x64", "0,64,64x64"}


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint16"])
def test_tiles_without_data_are_left_out(dtype: str, images: Path, tmp_path: Path):
    array = RNG.normal(500, 50, (64, 192)).astype(dtype)
    array[:, :64] = 0
    array[:4, :64] = 700  # 6 %, of one value
    array[:, 64:100] = 0  # 56 %
    tag = (42113, "s", 0, "0", True)
    tifffile.imwrite(images / "x.tif", array, photometric="minisblack", extratags=[tag])
    assert blank_left(images, tmp_path) == {"0,64,64x64", "0,128,64x64"}


def test_a_small_bright_spot_in_a_float_image_is_no_blank(images: Path, tmp_path: Path):
    array = np.zeros((64, 128), np.float32)
    array[10:12, 10:12] = 5
    np.save(images / "x.npy", array)
    assert blank_left(images, tmp_path) == {"0,0,64x64"}


@pytest.mark.parametrize("kind", ["uint16", "float32", "int16", "uint8"])
def test_a_few_saturated_pixels_change_nothing(kind: str, images: Path, tmp_path: Path):
    scene = RNG.normal(60, 1, (256, 512))
    scene[:, :192] += 12 * RNG.normal(size=(256, 192))  # texture of little contrast
    scene = scene.clip(0, 255).astype(kind)
    tifffile.imwrite(images / "x.tif", scene, photometric="minisblack")
    clean = blank_left(images, tmp_path)
    if kind == "uint8":
        assert len(clean) == 12
    limits = np.iinfo(kind).max if kind != "float32" else 1e6
    scene[20, 20] = scene[150, 400] = scene[250, 300] = limits
    tifffile.imwrite(images / "x.tif", scene, photometric="minisblack")
    assert blank_left(images, tmp_path) == clean


@pytest.mark.parametrize(
    ("kind", "filler"),
    [("uint16", 65535), ("int16", -32768), ("float32", -9999), ("float32", 1e20)],
)
def test_tiles_of_a_filler_that_no_tag_tells_decide_nothing(
    kind: str, filler: float, images: Path, tmp_path: Path
):
    scene = RNG.normal(1000, 30, (256, 256)).astype(kind)
    scene[:128] = filler
    tifffile.imwrite(images / "x.tif", scene, photometric="minisblack")
    full = blank_left(images, tmp_path)
    assert len(full) == 8
    scene[128:150, :64] = filler  # a border within a tile
    scene[120:128, 0] = 1000  # and few values in another
    tifffile.imwrite(images / "x.tif", scene, photometric="minisblack")
    assert blank_left(images, tmp_path) - {"64,0,64x64"} == full


def test_scenes_of_small_counts_are_not_blank(images: Path, tmp_path: Path):
    scene = RNG.integers(0, 6, (128, 128), np.uint16)
    scene[:, 64:] = 3
    scene[5, 5] = scene[9, 100] = 65535
    tifffile.imwrite(images / "x.tif", scene, photometric="minisblack")
    assert blank_left(images, tmp_path) == {"0,0,64x64", "64,0,64x64"}


def test_when_all_is_blank_that_is_said(images: Path, tmp_path: Path):
    Image.new("RGB", (200, 200)).save(images / "black.png")
    with pytest.raises(DataError, match=r"all 16 tiles .* blank"):
        cut(images, 64, tmp_path)
    with pytest.raises(ConfigError, match="--tile"):
        cut(images, 4, tmp_path)


def test_bad_images_are_listed_whole_and_bad_parts_as_tiles(images: Path, tmp_path: Path):
    (images / "bad.png").write_bytes(b"no image at all")
    tifffile.imwrite(
        images / "holes.tif", noise(128, 128), photometric="rgb", compression="zlib", tile=(64, 64)
    )
    with tifffile.TiffFile(images / "holes.tif") as file:
        place = file.pages.first.dataoffsets[1]
    data = bytearray((images / "holes.tif").read_bytes())
    data[place : place + 50] = bytes(50)
    (images / "holes.tif").write_bytes(data)
    tiles = cut(images, 64, tmp_path)
    assert len(tiles) == 5
    with pytest.raises(UnreadableError, match="known format"):
        tiles.open(0)
    bad = tiles.open(2)
    with pytest.raises(UnreadableError):
        read_pixels(bad)
    assert read_pixels(tiles.open(3)).shape == (64, 64, 3)


def test_a_changed_image_is_noticed(images: Path, tmp_path: Path):
    Image.fromarray(noise(100, 100)).save(images / "a.png")
    base = Listing([build(FolderSource(images), tmp_path / "base.idx")])
    before = TileSource(base, 64).state()
    tiles = cut(images, 64, tmp_path)
    assert json.loads(json.dumps(before)) == before == TileSource(base, 64).state()
    assert TileSource(base, 32).state() != before
    read_pixels(tiles.open(3))
    Image.fromarray(noise(80, 80)).save(images / "a.png")
    assert TileSource(base, 64).state() != before
    with pytest.raises(UnreadableError, match="changed: it is 80×80"):
        tiles.open(3)


SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from simmim.data.formats.decode import read_pixels
from simmim.data.sources.folder import FolderSource
from simmim.data.sources.index import build
from simmim.data.sources.listing import Listing
from simmim.data.sources.tiles import TileSource
root, work = Path(sys.argv[1]), Path(sys.argv[2])
base = Listing([build(FolderSource(root), work / "base.idx")])
tiles = Listing([build(TileSource(base, 512), work / "tiles.idx")])
out = {tiles[i]: int(read_pixels(tiles.open(i)).astype(np.int64).sum()) for i in range(len(tiles))}
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0])  # ru_maxrss would count the parent's
print(json.dumps({"tiles": out, "note": tiles.infos[0].notes[0], "peak": peak}))
"""


def test_400_megapixels_are_cut_in_bounded_memory(images: Path, tmp_path: Path):
    side = 20_000
    pattern = noise(700, 900, 1)[..., 0]
    stripped = tifffile.memmap(
        images / "strips.tif", shape=(side, side), dtype=np.uint8, photometric="minisblack"
    )  # a sparse file: zeros take no place on the disk
    stripped[3000:3700, 5000:5900] = pattern
    stripped[-700:, -900:] = pattern
    stripped.flush()
    tile = noise(512, 512, 1)[..., 0]
    tiles = (tile if k % 40 == 39 else np.zeros_like(tile) for k in range(1600))
    tifffile.imwrite(
        images / "tiles.tif",
        tiles,
        shape=(side, side),
        dtype=np.uint8,
        tile=(512, 512),
        compression="zlib",
        bigtiff=True,
        photometric="minisblack",
    )
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, images, tmp_path],
        **{"capture_output": True, "text": True, "timeout": 120, "check": True},
    )
    found = json.loads(result.stdout)
    assert found["peak"] < 1 << 20  # kB
    # Of the second file the last column is moved inwards, over the end of the column before.
    assert found["note"].startswith(f"{3200 - len(found['tiles']):,} of 3,200 tiles")
    for name, total in found["tiles"].items():
        top, left = map(int, name.split("@")[1].split(",")[:2])
        if name.startswith("strips"):
            expected = stripped[top : top + 512, left : left + 512].sum()
        else:
            assert left == side - 512
            # The file's own tiles begin at 512 r, the last at 19,968.
            seen = np.concatenate([tile, tile])[top % 512 : top % 512 + 512, : side - 19_968]
            expected = seen.sum()
        assert total == int(expected), name
    expected = {
        f"{top},{left}"
        for top, left, _, _ in grid(side, side, 512)
        if stripped[top : top + 512, left : left + 512].any()
    }
    names = {name.split("@")[1].rsplit(",", 1)[0] for name in found["tiles"] if "strips" in name}
    assert names == expected


def test_whole_use_of_such_a_file_names_the_way_out(images: Path):
    tifffile.memmap(images / "x.tif", shape=(20_000, 20_000), dtype=np.uint8).flush()
    with pytest.raises(UnreadableError, match="--tile"):
        inspect((images / "x.tif").read_bytes())
    assert inspect_file(images / "x.tif").height == 20_000
