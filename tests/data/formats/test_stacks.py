"""TIFF files of several pages: channels, planes, times, smaller copies."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from simmim.data.formats.decode import UnreadableError, decode, inspect, read_pixels, read_window
from simmim.data.formats.large import inspect_file

RNG = np.random.default_rng(5)
SIDES = {"T": 2, "Z": 4, "C": 3, "Y": 48, "X": 64, "S": 3, "Q": 5}
FULL = RNG.integers(0, 250, (48, 64, 3), dtype=np.uint8)
SMALL = FULL[::2, ::2].copy()
BOX = (7, 9, 20, 30)
SEVERAL = "several pages: only the first is used"
MISFIT = "what it says of its pages does not fit them: only the first is used"


def first_plane(array: np.ndarray, axes: str) -> np.ndarray:
    """All channels (h, w, C) of the first of everything else."""
    plane = array[tuple(slice(None) if axis in "YXCS" else 0 for axis in axes)]
    left = [axis for axis in axes if axis in "YXCS"]
    order = [left.index(axis) for axis in "YXCS" if axis in left]
    return plane.transpose(order).reshape(SIDES["Y"], SIDES["X"], -1)


def check(file: Path, right: np.ndarray) -> str:
    """Compare whole and part, from memory and from the disk; return what is left out."""
    right = right if right.ndim == 3 else right[..., None]
    top, left, height, width = BOX
    for opened in (inspect(file.read_bytes()), inspect_file(file)):
        assert (opened.height, opened.width, opened.channels) == right.shape
        assert np.array_equal(read_pixels(opened), right)
        part = right[top : top + height, left : left + width]
        assert np.array_equal(read_window(opened, BOX), part)
    assert opened.left_out == inspect(file.read_bytes()).left_out
    return opened.left_out


STACKS = {
    "imagej": ["CYX", "ZCYX", "TCYX", "TZCYX", "TZYX", "ZYXS", "TZCYXS"],
    "ome": ["CYX", "ZCYX", "CZYX", "TZCYX", "CTZYX", "ZTCYX", "TZYX", "ZYXS", "CZYXS", "ZSYX"],
    "shaped": ["CYX", "QCYX", "CQYX", "TZCYX", "CZYX", "QYX", "ZYXS", "CYXS"],
}
WAYS = [
    {},
    {"byteorder": ">"},
    {"compression": "zlib", "rowsperstrip": 7},
    {"tile": (16, 16), "compression": "zlib", "bigtiff": True},
]


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_all_channels_of_the_first_plane_are_read(kind: str, way: dict, tmp_path: Path):
    if kind == "imagej" and "bigtiff" in way:
        way = {name: value for name, value in way.items() if name != "bigtiff"}
    words = {"T": "planes in T", "Z": "planes in Z", "Q": "pages"}
    for axes in STACKS[kind]:
        dtype = np.uint8 if "S" in axes else np.uint16  # ImageJ has no deeper colours
        stored = RNG.integers(0, 250, [SIDES[axis] for axis in axes]).astype(dtype)
        options = {"photometric": "rgb" if "S" in axes else "minisblack"}
        options |= {"planarconfig": "separate"} if "SYX" in axes else {}
        options |= {} if kind == "shaped" else {kind: True}
        file = tmp_path / f"{axes}.tif"
        tifffile.imwrite(file, stored, metadata={"axes": axes}, **options, **way)
        said = [f"{SIDES[axis]} {words[axis]}" for axis in axes if axis in words]
        right = f"{', '.join(said)}: only the first is used" if said else ""
        assert check(file, first_plane(stored, axes)) == right, axes


@pytest.mark.parametrize("kind", ["imagej", "shaped"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_may_have_no_pages_of_their_own(kind: str, order: str, tmp_path: Path):
    """As ImageJ writes large stacks."""
    stored = RNG.integers(0, 60000, (4, 3, 48, 64)).astype(np.uint16)
    options = {"photometric": "minisblack", "truncate": True, "byteorder": order}
    file, axes = tmp_path / "x.tif", {"axes": "ZCYX"}
    tifffile.imwrite(file, stored, imagej=kind == "imagej", metadata=axes, **options)
    assert len(tifffile.TiffFile(file).pages) == 1
    assert check(file, first_plane(stored, "ZCYX")) == "4 planes in Z: only the first is used"


def test_pyramids_give_their_base(tmp_path: Path):
    stored = RNG.integers(0, 60000, (4, 3, 48, 64)).astype(np.uint16)
    options = {"tile": (16, 16), "photometric": "minisblack"}
    file = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(file, ome=True) as writer:
        writer.write(stored, subifds=1, metadata={"axes": "ZCYX"}, **options)
        writer.write(stored[..., ::2, ::2].copy(), subfiletype=1, **options)
    assert check(file, first_plane(stored, "ZCYX")) == "4 planes in Z: only the first is used"


def test_several_images_of_one_file_are_told(tmp_path: Path):
    stored = RNG.integers(0, 60000, (2, 3, 48, 64)).astype(np.uint16)
    file = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(file, ome=True) as writer:
        for each in stored:
            writer.write(each, metadata={"axes": "CYX"}, photometric="minisblack")
    assert check(file, first_plane(stored[0], "CYX")) == "2 images: only the first is used"


def test_pages_of_which_nothing_is_said_are_no_channels(tmp_path: Path):
    file = tmp_path / "x.tif"
    with tifffile.TiffWriter(file) as writer:
        for channel in range(3):
            writer.write(FULL[..., channel].copy(), photometric="minisblack", metadata=None)
    assert check(file, FULL[..., 0]) == SEVERAL


OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="a">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="64" '
    'SizeY="48" SizeC="3" SizeZ="1" SizeT="1">{}</Pixels></Image></OME>'
)
ELSEWHERE = "".join(
    f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{c}.tif">{name}</UUID>'
    "</TiffData>"
    for c, name in enumerate("abc")
)


@pytest.mark.parametrize(
    "said",
    [
        OME.format('<TiffData IFD="0" PlaneCount="3"/>'),
        OME.format(ELSEWHERE),
        OME.format("<"),
        OME.format("").replace('SizeC="3"', 'SizeC="2000000000"'),
        OME.format("").replace('SizeZ="1" SizeT="1"', 'SizeZ="90000" SizeT="90000"'),
        OME.format('<TiffData FirstC="0" IFD="1999999999" PlaneCount="1"/>'),
        "ImageJ=1.11a\nimages=1000000\nchannels=1000000\nhyperstack=true\n",
    ],
)
def test_a_description_that_does_not_fit_is_told(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    grey = FULL[..., 0].copy()
    for name in ("x", "1", "2"):  # the others lie where a reader might look for them
        file = tmp_path / f"{name}.tif"
        tifffile.imwrite(file, grey, photometric="minisblack", description=said, metadata=None)
    monkeypatch.chdir(tmp_path)
    assert check(tmp_path / "x.tif", grey) == MISFIT


def test_absurd_numbers_of_channels_are_refused_at_once(tmp_path: Path):
    said = '{"shape": [1000000, 48, 64], "axes": "CYX", "truncated": true}'
    options = {"photometric": "minisblack", "description": said, "metadata": None}
    tifffile.imwrite(tmp_path / "x.tif", FULL[..., 0].copy(), **options)
    with pytest.raises(UnreadableError, match="1000000 channels"):
        inspect((tmp_path / "x.tif").read_bytes())


ASIDE = {
    "NewSubfileType": {"subfiletype": 1},
    "SubfileType": {"extratags": [(255, "H", 1, 2, True)]},
}
CODED = pytest.mark.parametrize("coding", [{}, {"compression": "zlib", "tile": (16, 16)}], ids=str)


@CODED
@pytest.mark.parametrize("kind", ASIDE)
def test_a_smaller_copy_that_comes_first_is_passed_over(kind: str, coding: dict, tmp_path: Path):
    options = {"photometric": "rgb", "metadata": None, **coding}
    aside, file = ASIDE[kind], tmp_path / "x.tif"
    tifffile.imwrite(file, SMALL, **aside, **options)
    assert np.array_equal(decode(file.read_bytes()), SMALL)  # there is nothing else
    with tifffile.TiffWriter(file) as writer:
        writer.write(SMALL, **aside, **options)
        writer.write(SMALL[::2, ::2].copy(), **aside, **options)
        writer.write(FULL, **options)
    assert check(file, FULL) == ""
    with tifffile.TiffWriter(file) as writer:
        writer.write(SMALL, **aside, **options)
        writer.write(FULL, **options)
        writer.write(FULL[::-1].copy(), **options)
    assert check(file, FULL) == SEVERAL
    with tifffile.TiffWriter(file) as writer:
        writer.write(SMALL, subifds=1, **aside, **options)
        writer.write(FULL, **options)  # below it
    assert check(file, FULL) == ""


@CODED
def test_copies_and_masks_behind_the_image_are_no_further_pages(coding: dict, tmp_path: Path):
    options, file = {"photometric": "rgb", "metadata": None, **coding}, tmp_path / "x.tif"
    with tifffile.TiffWriter(file) as writer:
        writer.write(FULL, subifds=1, **options)
        writer.write(SMALL, subfiletype=1, **options)
        writer.write(SMALL, subfiletype=1, **options)
        writer.write(FULL[..., 0] > 99, **{**options, "photometric": 4}, subfiletype=4)
    assert check(file, FULL) == ""


def test_what_pillow_reads_is_chosen_alike(tmp_path: Path):
    inks = np.dstack([FULL, FULL[..., :1]])
    right = np.asarray(Image.frombytes("CMYK", (64, 48), inks.tobytes()).convert("RGB"))
    options, file = {"photometric": "separated", "metadata": None}, tmp_path / "x.tif"
    with tifffile.TiffWriter(file) as writer:
        writer.write(inks[::2, ::2].copy(), subfiletype=1, **options)
        writer.write(inks, **options)
        writer.write(inks[::-1].copy(), **options)
    assert check(file, right) == SEVERAL
    with tifffile.TiffWriter(file) as writer:
        writer.write(inks[::2, ::2].copy(), subfiletype=1, subifds=1, **options)
        writer.write(inks, **options)
    with pytest.raises(UnreadableError, match="outside of the first page"):
        decode(file.read_bytes())


def test_channels_that_pillow_would_lose_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("imagecodecs")
    stream = io.BytesIO()
    stored = FULL.transpose(2, 0, 1).copy()
    tifffile.imwrite(stream, stored, imagej=True, metadata={"axes": "CYX"}, compression="lzw")
    assert np.array_equal(decode(stream.getvalue()), FULL)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnreadableError, match=r"LZW coding.*simmim\[tiff\]"):
        decode(stream.getvalue())
