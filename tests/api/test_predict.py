"""`simmim predict`, and `embed` and `predict` into folders of parts."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from simmim.api import embed, predict
from simmim.cli.main import main
from simmim.config.commands import EmbedConfig, PredictConfig
from simmim.config.encoder import EncoderConfig
from simmim.config.resolved import PixelFormat
from simmim.config.task import Segmentation
from simmim.data.formats.decode import inspect
from simmim.data.map_classes import MapClasses
from simmim.data.sources.find import find_images
from simmim.errors import DataError
from simmim.models.build import build_encoder
from simmim.tasks.classifier import Classifier, load_classifier, save_classifier
from simmim.tasks.masks import mask_names
from simmim.tasks.scenes import Scene
from simmim.tasks.segmenter import Segmenter, load_segmenter, save_segmenter
from simmim.tensors.batch import IGNORE

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """A command's exit status, and all that it printed, in one line."""

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main([*map(str, words), "--workers", "0"])
        return status, " ".join("".join(capsys.readouterr()).split())

    return run


@pytest.fixture
def tuned(tmp_path: Path, pixels: PixelFormat) -> Callable[..., Path]:
    """Makes the folder of a fine-tuned run, which holds an encoder too."""

    def make(name: str, classes: list[str], seed: int = 0) -> Path:
        torch.manual_seed(seed)
        config = EncoderConfig(
            model="vit_tiny_patch16_224",
            patch_size=16,
            arguments={"depth": 1, "embed_dim": 48, "num_heads": 3},
        )
        encoder = build_encoder(config, image_size=(32, 32), channels=3)
        classifier = Classifier(encoder, pixels, classes)
        torch.nn.init.normal_(classifier.head.weight)
        folder = tmp_path / name
        folder.mkdir()
        save_classifier(folder, classifier, {})
        return folder

    return make


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Eleven images in two folders, of which one is broken."""
    for number in range(11):
        folder = tmp_path / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = rng.integers(0, 255, (40, 36, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{number:02d}.png")
    (tmp_path / "data" / "b" / "03.png").write_bytes(b"no image")
    return tmp_path / "data"


def rows_of(file: Path, classes: list[str]) -> tuple[list[str], list[str], np.ndarray]:
    """Paths, predictions and probabilities of a file of predictions."""
    if file.suffix == ".csv":
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
    else:
        columns = pq.read_table(file).to_pydict()
    assert list(columns) == ["path", "prediction", *classes]
    shares = np.array([columns[name] for name in classes], np.float64).T
    return columns["path"], columns["prediction"], shares


@pytest.mark.parametrize("out", ["x.csv", "x.parquet", "parts"])
def test_predictions_are_those_of_the_classifier(
    out: str, call: Call, tuned: Callable[..., Path], data: Path, tmp_path: Path
):
    classes = ["cat", "dog", "a, b"]
    run = tuned("run", classes)
    status, text = call("predict", run, data, "--out", tmp_path / out)
    assert status == 0, text
    assert "10 predictions among 3 classes" in text
    assert "no row: 1 of 11 images could not be read: 1 × not an image" in text
    paths, names, shares = rows_of(tmp_path / out, classes)
    model = load_classifier(run)
    assert paths == [f"a/{n:02d}.png" for n in range(0, 11, 2)] + [
        f"b/{n:02d}.png" for n in (1, 5, 7, 9)
    ]
    with torch.no_grad():
        views = torch.stack([model.transform(data / path) for path in paths])
        expected = model(views).softmax(1).numpy()
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert names == [classes[best] for best in expected.argmax(1)]
    assert len(set(names)) > 1


def test_several_runs_are_averaged_where_their_classes_agree(
    call: Call, tuned: Callable[..., Path], data: Path, tmp_path: Path
):
    one, two = tuned("one", ["cat", "dog", "fox"]), tuned("two", ["fox", "cat", "dog"], 1)
    three, other = tuned("three", ["cat", "dog", "fox"], 2), tuned("other", ["cat", "dog", "cow"])
    words = ("predict", one, data, "--out", tmp_path / "x.parquet")
    status, text = call(*words, "--also", two, "--also", three)
    assert status == 0, text
    assert "the mean of 3 runs" in text
    paths, _, shares = rows_of(tmp_path / "x.parquet", ["cat", "dog", "fox"])
    each = [load_classifier(run).predict(data).probabilities for run in (one, two, three)]
    np.testing.assert_allclose(shares, (each[0] + each[1][:, [1, 2, 0]] + each[2]) / 3, atol=1e-6)
    assert len(paths) == 10
    words = ("predict", one, data, "--out", tmp_path / "y.csv")
    status, text = call(*words, "--also", f"{two},{other}")
    assert status == 2
    assert "cannot be averaged, their classes differ: fox in" in text
    assert f"cow in {other} alone" in text
    assert not (tmp_path / "y.csv").exists()


def test_what_is_no_run_or_no_file_for_predictions_is_said(
    call: Call, tuned: Callable[..., Path], data: Path, tmp_path: Path
):
    run = tuned("run", ["a", "b"])
    status, text = call("predict", run, data, "--out", tmp_path / "x.json")
    assert (status, "goes to a .csv or a .parquet file" in text) == (2, True)
    status, text = call("predict", data, data, "--out", tmp_path / "x.csv")
    assert (status, "is no fine-tuned run: it has no classifier.safetensors" in text) == (2, True)
    (tmp_path / "x.csv").write_text("mine")
    status, text = call("predict", run, data, "--out", tmp_path / "x.csv")
    assert (status, "is not overwritten" in text) == (2, True)
    status, text = call("predict", run, data, "--out", data)
    assert (status, "holds something else" in text) == (2, True)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("simmim.evaluate.parts.ROWS", 3)


def files_of(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.iterdir() if file.is_file() and file.name != ".lock")
    return {file.name: file.read_bytes() for file in files}


def kill_at(words: list[str], file: Path) -> None:
    """Run a command in a process that is killed once ``file`` is there."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main(words)
        os._exit(0)
    deadline = time.monotonic() + 60
    while not file.exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("command", ["embed", "predict"])
@pytest.mark.usefixtures("small_parts")
def test_a_killed_command_goes_on_at_a_part_with_the_same_bytes(
    command: str, call: Call, tuned: Callable[..., Path], data: Path, tmp_path: Path
):
    run = tuned("run", ["a", "b"])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # Two unreadable images more, and a part of them alone.
    for name in ("a/06.png", "a/08.png", "a/10.png"):
        (data / name).write_bytes(b"")
    words = [command, str(run), str(data), "--workers", "0", "--batch-size", "1"]
    kill_at([*words, "--out", str(cut)], cut / "part-000001.parquet")
    (cut / ".tmp-1-part-000003.parquet").write_bytes(b"torn")
    begun = (cut / "part-000000.parquet").stat().st_mtime_ns
    status, text = call(*words, "--out", cut)
    assert status == 0, text
    assert "in 4 parts in" in text
    assert "of them from before" in text
    assert "no row: 4 of 11 images" in text
    assert (cut / "part-000000.parquet").stat().st_mtime_ns == begun
    assert call(*words, "--out", whole)[0] == 0
    assert files_of(cut) == files_of(whole)
    assert set(files_of(cut)) == {"_parts.json", *(f"part-00000{n}.parquet" for n in range(4))}
    table = pq.read_table(cut)
    assert table.num_rows == 7
    assert call(*words, "--out", tmp_path / "x.parquet")[0] == 0
    one = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.equals(one.schema)
    assert table["path"] == one["path"]
    # Without anything to do it says the same, and for other images it refuses.
    assert "4 of them from before" in call(*words, "--out", cut)[1]
    (data / "a" / "more.png").write_bytes(b"")
    status, text = call(*words, "--out", cut)
    assert (status, "not the same: images, fingerprint" in text) == (2, True)


@pytest.mark.parametrize("command", [embed, predict])
def test_a_machine_that_finds_other_images_makes_no_part(
    command, tuned: Callable[..., Path], data: Path, tmp_path: Path
):
    kind = EmbedConfig if command is embed else PredictConfig
    config = kind(run=str(tuned("run", ["a", "b"])), data=str(data), out=tmp_path / "out")
    same = find_images(str(data)).fingerprint()
    rows, _ = command._rows_elsewhere(range(2), print, config=config, fingerprint=same)
    assert rows.num_rows == 2
    with pytest.raises(DataError, match="a machine of the cluster finds other images"):
        command._rows_elsewhere(range(2), print, config=config, fingerprint="other")


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_ray_makes_the_same_parts(
    call: Call, tuned: Callable[..., Path], data: Path, tmp_path: Path
):
    import ray

    run = tuned("run", ["a", "b"])
    (data / "a/06.png").write_bytes(b"")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
    try:
        for command in ("embed", "predict"):
            words = [command, str(run), str(data), "--workers", "0", "--batch-size", "1"]
            status, text = call(*words, "--engine", "ray", "--out", tmp_path / f"{command}-ray")
            assert status == 0, text
            assert "in 4 parts in" in text
            call(*words, "--out", tmp_path / command)
            assert files_of(tmp_path / f"{command}-ray") == files_of(tmp_path / command)
    finally:
        ray.shutdown()
    status, text = call(*words, "--engine", "ray", "--out", tmp_path / "x.parquet")
    assert (status, "give an --out without an ending" in text) == (2, True)


@pytest.mark.usefixtures("small_parts")
def test_parts_of_other_weights_or_damaged_ones_are_refused(
    call: Call, tuned: Callable[..., Path], data: Path, tmp_path: Path
):
    one, two, out = tuned("one", ["a", "b"]), tuned("two", ["a", "b"], 1), tmp_path / "out"
    assert call("embed", one, data, "--out", out)[0] == 0
    status, text = call("embed", two, data, "--out", out)
    assert (status, "not the same: weights" in text) == (2, True)
    status, text = call("predict", one, data, "--out", out)
    assert (status, "not the same: columns, weights" in text) == (2, True)
    (out / "part-000002.parquet").write_bytes(b"PAR1")
    status, text = call("embed", one, data, "--out", out)
    assert (status, "part-000002.parquet is damaged" in text) == (2, True)
    (out / "part-000002.parquet").unlink()
    assert call("embed", one, data, "--out", out)[0] == 0


TWO = """
import sys
import simmim.evaluate.parts
from simmim.cli.main import main
simmim.evaluate.parts.ROWS = 3
run, data, out = sys.argv[1:]
alone = ["--workers", "0", "--batch-size", "1"]
for words in (
    ["embed", run, data, *alone, "--out", f"{out}/parts"],
    ["embed", run, data, *alone, "--out", f"{out}/x.npz"],
    ["predict", run, data, *alone, "--out", f"{out}/x.csv"],
    ["probe", run, data, *alone],
):
    assert main(words) == 0, words
"""


@pytest.mark.slow
def test_two_processes_write_the_same_as_one(
    tuned: Callable[..., Path], data: Path, tmp_path: Path
):
    (tmp_path / "two.py").write_text(TWO)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run, told = tuned("run", ["a", "b"]), []
    alike = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun's own; more threads sum otherwise
    for name, start in (("one", [sys.executable]), ("two", torchrun)):
        (tmp_path / name).mkdir()
        words = [*start, tmp_path / "two.py", run, data, tmp_path / name]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=alike)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.replace(f"/{name}/", "/"))
    assert told[0].count("10 embeddings of 48 numbers in 4 parts") == 1
    ends = [text[text.index("frozen features:") :] for text in told]
    assert ends[0] == ends[1]
    for name in ("parts", "."):
        assert files_of(tmp_path / "two" / name) == files_of(tmp_path / "one" / name)


@pytest.fixture
def segmented(tmp_path: Path, pixels: PixelFormat) -> Callable[..., Path]:
    """Makes the folder of a segmenter of sky, 0, and road, 2, beside an encoder."""

    def make(name: str, seed: int = 0, classes: Sequence[str] = ("sky", "road")) -> Path:
        torch.manual_seed(seed)
        arguments = {"depth": 1, "embed_dim": 48, "num_heads": 3}
        config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=8, arguments=arguments)
        encoder = build_encoder(config, image_size=(24, 32), channels=3)
        colours = [(9, 9, 9), (200, 0, 0)]
        meaning = MapClasses(list(classes), [0, 2], {0: 0, 2: 1, 1: IGNORE}, colours)
        segmenter = Segmenter(encoder, pixels, meaning, Segmentation(head="linear"))
        torch.nn.init.normal_(segmenter.head.get_parameter("classify.weight"))
        folder = tmp_path / name
        folder.mkdir()
        save_segmenter(folder, segmenter, {})
        return folder

    return make


def test_a_segmenter_writes_masks_and_goes_on_where_it_was_stopped(
    call: Call, segmented: Callable[..., Path], data: Path, tmp_path: Path
):
    run, out = segmented("run"), tmp_path / "out"
    (data / "a" / "00.jpg").write_bytes((data / "a" / "00.png").read_bytes())  # the same stem
    words = ("predict", run, data, "--out", out)
    status, text = call(*words)
    assert status == 0, text
    assert "11 masks of 2 classes, in" in text
    assert "values of the masks: 0 sky, 2 road" in text
    assert "no mask: 1 of 12 images could not be read" in text
    names = {"a/00.png.png", "a/00.jpg.png", *(f"a/{n:02d}.png" for n in range(2, 11, 2))}
    names |= {f"b/{n:02d}.png" for n in (1, 5, 7, 9)}
    again = tmp_path / "again"
    assert main(["predict", str(run), str(data), "--out", str(again), "--workers", "2"]) == 0
    for folder in ("masks/a", "masks/b", "overlays/a", "overlays/b"):
        assert files_of(again / folder) == files_of(out / folder)
    model = load_segmenter(run)
    for kind in ("masks", "overlays"):
        found = {str(file.relative_to(out / kind)) for file in (out / kind).rglob("*.png")}
        assert found == names
    for name in ("a/02.png", "b/07.png"):
        mask, over = (np.array(Image.open(out / kind / name)) for kind in ("masks", "overlays"))
        frames = [(model.pixels, model.window)]
        scene = Scene.of(inspect((data / name).read_bytes()), frames)
        with torch.no_grad():
            expected = model.segment(scene, frames)
        assert np.array_equal(mask, 2 * expected)
        assert set(np.unique(mask)) == {0, 2}
        photo = np.array(Image.open(data / name), float)
        shown = (photo + np.array([(9, 9, 9), (200, 0, 0)])[expected]) / 2
        np.testing.assert_allclose(over, shown, atol=1)

    # What is there is kept, what is missing is written, and nothing else goes into the folder.
    kept = (out / "overlays/a/02.png").stat().st_mtime_ns
    before = (out / "masks/b/07.png").read_bytes()
    (out / "overlays/b/07.png").unlink()
    (out / "masks/b/.tmp-1-07.png").write_bytes(b"torn")
    assert call(*words)[0] == 0
    assert (out / "overlays/a/02.png").stat().st_mtime_ns == kept
    assert (out / "masks/b/07.png").read_bytes() == before
    assert not (out / "masks/b/.tmp-1-07.png").exists()
    other = segmented("other", 1)
    status, text = call("predict", other, data, "--out", out)
    assert (status, "not the same: weights" in text) == (2, True)

    # Several are averaged; a file is no place for masks; classes must be the same.
    both = tmp_path / "both"
    assert call("predict", run, data, "--also", other, "--out", both)[0] == 0
    image = inspect((data / "a/02.png").read_bytes())
    with torch.no_grad():
        (view,) = Scene.of(image, frames).views
        each = [load_segmenter(each).scores(view, model.pixels) for each in (run, other)]
    shares = sum(logits.softmax(0) for logits in each)
    size = np.array(Image.open(data / "a/02.png")).shape[:2]
    mean = torch.nn.functional.interpolate(shares[None], size, mode="bilinear")[0].argmax(0)  # type: ignore[index]
    assert np.array_equal(np.array(Image.open(both / "masks/a/02.png")), 2 * mean.numpy())
    status, text = call("predict", run, data, "--out", tmp_path / "x.csv")
    assert (status, "goes to a folder of masks" in text) == (2, True)
    third = segmented("third", 2, ("sky", "sea"))
    status, text = call("predict", run, data, "--also", third, "--out", tmp_path / "y")
    assert (status, "their classes differ" in text) == (2, True)


def test_no_mask_is_written_outside_of_its_folder():
    names = mask_names(["../a.png", "/b/c.tif", "x.jpg", "x.png", "x.png.png", "d", "e//f.png"])
    expected = ["_/a", "b/c", "x.jpg", "x.png", "x.png_", "d", "e/_/f"]
    assert names == [f"{each}.png" for each in expected]
