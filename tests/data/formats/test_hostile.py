"""Files that are damaged, odd, or made to do harm: each is read rightly or refused with a reason.

A child process reads them all, with a limit of time for each file and of memory for all.
"""

import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import bombs, odd, samples, saved
from PIL import Image, ImageOps

from simmim.data.formats.decode import decode

ARCHIVE = Path(__file__).parents[4] / "shared" / "data" / "hostile.tar.gz"
RNG = np.random.default_rng(17)
MEMORY = 2 << 20
"""Kilobytes that reading all files may take."""
SECONDS = 20

CHILD = """
import faulthandler, json, os, resource, signal, sys, time
import numpy as np
from pathlib import Path
from simmim.data.formats.decode import UnreadableError, inspect, read_file, read_pixels, read_window
from simmim.data.formats.large import inspect_file
faulthandler.enable()
signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a file that hangs ends the process
keep, out = sys.argv[1] == "keep", Path(sys.argv[2])
for number, name in enumerate(sys.stdin.buffer.read().split(b"\\0")):
    path = Path(os.fsdecode(name))
    print(json.dumps({"begin": number}), flush=True)
    signal.alarm(int(sys.argv[3]))
    start, found = time.monotonic(), {}
    try:
        opened = inspect(read_file(path))
        array = read_pixels(opened)
        shape = (opened.height, opened.width, opened.channels)
        assert shape == array.shape and opened.dtype == array.dtype, (shape, array.shape)
        assert array.dtype in (np.uint8, np.uint16, np.float32)
        found = {"shape": list(array.shape), "dtype": str(array.dtype)}
        if keep and array.nbytes < 1 << 26:
            np.save(out / f"{number}.npy", array)
        del array, opened
    except UnreadableError as error:
        found = {"reason": error.reason}
    try:
        opened = inspect_file(path)
        read_window(opened, (0, 0, min(8, opened.height), min(8, opened.width)))
    except UnreadableError as error:
        found["parts"] = error.reason
    signal.alarm(0)
    found["seconds"] = time.monotonic() - start
    status = Path("/proc/self/status").read_text()
    found["peak"] = int(status.split("VmHWM:")[1].split()[0])  # ru_maxrss would count the parent's
    print(json.dumps(found), flush=True)
"""


def read_all(files: list[Path], out: Path | None = None) -> list[dict[str, Any]]:
    """Read files in a child; returns for each its shape or the reason why not."""
    result = subprocess.run(
        [sys.executable, "-c", CHILD, "keep" if out else "drop", str(out or "."), str(SECONDS)],
        input=b"\0".join(os.fsencode(file) for file in files),
        capture_output=True,
        timeout=300,
        check=False,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    done = [line for line in lines if "begin" not in line]
    if len(done) < len(files):
        pytest.fail(f"{files[len(done)]} ended the process: {result.stderr.decode()[-2000:]}")
    assert result.stderr == b""  # decoders must not write to the terminal
    assert done[-1]["peak"] < MEMORY, max(zip((d["peak"] for d in done), files, strict=True))
    for found in done:
        assert 0 < len(found.get("reason", "x")) < 200
    return done


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not ARCHIVE.is_file():
        pytest.skip(f"the hostile image set is not at {ARCHIVE}")
    root = tmp_path_factory.mktemp("hostile")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(root, filter="data")
    return root / "hostile"


DAMAGED = (
    # Pillow opens these and says nothing, but libjpeg and zlib see that data are missing or wrong.
    *("bitrot/header_02.jpg", "bitrot/header_03.jpg", "bitrot/scan_05.jpg", "bitrot/scan_10.jpg"),
    *("bitrot/scan_11.jpg", "bitrot/idat_1.png", "bitrot/idat_2.png", "bitrot/idat_3.png"),
    "formats/libpng_badadler.png",
)
TWICE_WRONG = ("bitrot/", "fuzz/")
"""Read by Pillow and by us, from damaged data: what comes out is nobody's right answer."""


def by_pillow(file: Path) -> np.ndarray | None:
    """Read a file independently; None where Pillow would reduce it."""
    with Image.open(file) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return np.asarray(image)[..., None]
        if image.format == "PNG" and file.read_bytes()[24] == 16:
            return None
        if image.mode == "LAB":
            return None
        upright = ImageOps.exif_transpose(image) if image.format != "TIFF" else image
        grey = image.mode in ("1", "L")
        if not grey and ("transparency" in image.info or image.mode in ("RGBA", "LA")):
            above = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
        array = np.asarray(upright.convert("L" if grey else "RGB"))
        return array[..., None] if grey else array


def test_each_file_of_the_hostile_set_is_read_rightly_or_named(hostile: Path, tmp_path: Path):
    expected = json.loads((hostile / "expect.json").read_text())["files"]
    names = [name for name in expected if (hostile / name).is_file()]
    assert len(names) > 150
    found = dict(zip(names, read_all([hostile / n for n in names], tmp_path), strict=True))
    for number, name in enumerate(names):
        facts, outcome = expected[name], found[name]
        assert outcome["seconds"] < SECONDS
        should = facts.get("load") == "ok" and name not in DAMAGED
        assert ("shape" in outcome) == should, (name, outcome)
        file = tmp_path / f"{number}.npy"
        if not should or name.startswith(TWICE_WRONG) or not file.exists():
            continue
        right = by_pillow(hostile / name)
        if right is None:
            continue
        array = np.load(file)
        assert array.shape == right.shape, name
        finite = np.isfinite(right)
        difference = np.abs(array.astype(np.float64) - right)[finite].max()
        lossy = facts["format"] in ("JPEG", "MPO") or "transparen" in name
        assert difference <= (4 if lossy else 0), (name, difference)


def test_deep_files_of_the_hostile_set_against_libpng(hostile: Path):
    codecs = pytest.importorskip("imagecodecs")
    names = ("basn4a16", "basn6a16", "ibasn2c16", "iftbbn2c16")
    files = [hostile / "modes" / f"pngsuite_{name}.png" for name in names]
    files += [*(hostile / "modes").glob("sharp_*16*bit*.png"), hostile / "modes" / "gray16_low.png"]
    for file in files:
        right = codecs.png_decode(file.read_bytes())
        right = right[..., None] if right.ndim == 2 else right
        if right.shape[2] in (2, 4):
            share = right[..., -1:].astype(np.float64) / 65535
            right = np.floor(right[..., :-1] * share + 65535 * (1 - share) + 0.5)
        array = decode(file.read_bytes())
        assert array.dtype == np.uint16
        assert np.abs(array - right.astype(np.float64)).max() <= 1, file


def test_orientations_of_the_hostile_set_show_one_picture(hostile: Path):
    files = sorted((hostile / "exif").glob("orient_*"))
    pictures = [decode(file.read_bytes()).astype(int) for file in files]
    assert len(pictures) > 8
    for picture in pictures:
        assert np.abs(picture - pictures[0]).mean() < 6


def write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def test_files_cut_short_anywhere_are_refused_or_read(tmp_path: Path):
    files = {}
    for name, data in samples().items():
        for k in range(12):
            files[f"{k}_{name}"] = data[: len(data) * k // 12]
    found = dict(zip(files, read_all(write(tmp_path, files)), strict=True))
    for name, outcome in found.items():
        # Lossless formats must notice; JPEG 2000, PPM and QOI say so too, but not all others.
        if name.endswith((".tif", "png", ".npy", "jpeg", ".jpg", "webp", ".heic")):
            assert "reason" in outcome, name


def test_damage_at_random_crashes_nothing(tmp_path: Path):
    files = {}
    for name, data in samples().items():
        for k in range(40):
            broken = bytearray(data)
            for _ in range(RNG.integers(1, 6)):
                # The headers are where it matters.
                end = len(data) if k % 2 else min(len(data), 300)
                broken[RNG.integers(0, end)] = RNG.integers(0, 256)
            files[f"{k}_{name}"] = bytes(broken)
    read_all(write(tmp_path, files))


def test_bombs_and_absurd_headers_are_refused_quickly(tmp_path: Path):
    files = bombs()
    found = dict(zip(files, read_all(write(tmp_path, files)), strict=True))
    readable = {"text.png", "profile.png", "cyclic.tif", "deflate.tif", "imagej.tif", "rows.tif"}
    readable |= {"count.tif", "tile.tif"}  # what is absurd in them is not needed
    for name, outcome in found.items():
        assert outcome["seconds"] < 8, (name, outcome)
    read = {name for name, outcome in found.items() if "shape" in outcome}
    assert read <= readable, {name: found[name] for name in read - readable}


def test_odd_files_are_read_and_rightly(tmp_path: Path):
    files = odd()
    out = tmp_path / "out"
    out.mkdir()
    paths = write(tmp_path, {name: data for name, (data, _) in files.items()})
    found = read_all(paths, out)
    for number, (name, (_, right)) in enumerate(files.items()):
        assert "shape" in found[number], (name, found[number])
        if right is not None:
            array = np.load(out / f"{number}.npy").astype(np.float64)
            assert np.abs(array - right).max() <= (3 if name.endswith(".jpg") else 0), name
    assert decode(files["grey4.png"][0])[..., 0].tolist() == [
        [k * 17 for k in range(8)],
        [k * 17 for k in range(8, 16)],
    ]
    assert decode(files["grey2.png"][0])[0, :, 0].tolist() == [0, 85, 170, 255] * 2


def test_what_is_no_image_is_named(tmp_path: Path):
    texts = {
        "empty.jpg": (b"", "empty"),
        "zeros.jpg": (bytes(5000), "zeros"),
        "pointer.jpg": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "git lfs pull",
        ),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>", "HTML"),
        "page2.png": (b"\n <html><body>Error</body>", "HTML"),
        "drawing.png": (b'<?xml version="1.0"?><svg width="9"></svg>', "SVG"),
        "packed.jpg": (b"\x1f\x8b\x08\0\0\0\0\0", "compressed"),
        "words.jpg": (b"some words\n" * 50, "known format"),
        "program.jpg": (b"\x7fELF\2\1\1" + bytes(50) + b"x", "known format"),
    }
    files = write(tmp_path, {name: data for name, (data, _) in texts.items()})
    found = read_all(files)
    for outcome, (_, reason) in zip(found, texts.values(), strict=True):
        assert reason in outcome["reason"]


def test_what_is_no_file_neither_hangs_nor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to("missing")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket.png")
    names = ["pipe", "folder", "nowhere", "circle", "device", "socket", "gone"]
    files = [tmp_path / f"{name}.png" for name in names]
    if os.geteuid():
        (tmp_path / "secret.png").write_bytes(saved("PNG"))
        (tmp_path / "secret.png").chmod(0)
        files.append(tmp_path / "secret.png")
    found = read_all(files)
    server.close()
    for file, outcome in zip(files, found, strict=True):
        assert "reason" in outcome, file
        assert outcome["seconds"] < 1
