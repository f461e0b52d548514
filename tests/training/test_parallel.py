"""Two processes, with whole weights and with shares of them, do what one does."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import two_processes
from commands import pair
from PIL import Image
from safetensors.torch import load_file

KINDS = [("two", "whole"), ("two", "sharded")]


@pytest.fixture(scope="module")
def out(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and two wrote, in ``one`` and ``two``."""
    out = tmp_path_factory.mktemp("processes")
    few = out / "few"
    for name, count in (("dress", 4), ("shoes", 4)):
        (few / name).mkdir(parents=True)
        for file in sorted((photos / name).iterdir())[:count]:
            shutil.copy(file, few / name)
    sorted((few / "shoes").iterdir())[1].write_bytes(b"\xff\xd8\xff no photo")
    for name in ("one", "two"):
        (out / name).mkdir()
    two_processes.main(photos, few, out / "one")
    # gloo's processes may die at exit under load: what they wrote counts.
    with pair(partial(two_processes.main, photos, few, out / "two")) as both:
        said = [process.communicate() for process in both]
    assert (out / "two" / "results.pt").exists(), said
    return out


def results(out: Path, ranks: str) -> dict[str, Any]:
    return torch.load(out / ranks / "results.pt", weights_only=False)


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in state.values()])


@pytest.mark.parametrize(("ranks", "kind"), KINDS)
def test_two_processes_train_what_one_trains(out: Path, ranks: str, kind: str):
    one, two = results(out, "one")["whole"], results(out, ranks)[kind]
    assert two["t"] == one["t"] == list(range(120))
    folder = Path("checkpoints/step-00000010")
    for name in ("model", "optimizer"):
        file = (folder / name).with_suffix(".safetensors")
        a, b = load_file(out / "one" / "whole" / file), load_file(out / ranks / kind / file)
        assert a.keys() == b.keys()
        assert float((flat(a) - flat(b)).norm() / flat(a).norm()) < 1e-5
    assert two["encoder"].keys() == one["encoder"].keys()
    a, b = flat(one["encoder"]), flat(two["encoder"])
    assert float((a - b).norm() / a.norm()) < 1e-5


@pytest.mark.parametrize(("ranks", "kind"), KINDS)
def test_two_processes_share_the_work_of_muon(out: Path, ranks: str, kind: str):
    a = flat(results(out, "one")["whole"]["muon"])
    b = flat(results(out, ranks)[kind]["muon"])
    assert float((a - b).norm() / a.norm()) < 1e-5


@pytest.mark.parametrize(("ranks", "kind"), KINDS)
def test_looks_of_two_processes_say_what_those_of_one_say(out: Path, ranks: str, kind: str):
    one, two = results(out, "one")["whole"]["rows"], results(out, ranks)[kind]["rows"]
    assert [row["step"] for row in two] == [row["step"] for row in one]
    looked = [row for row in one if "knn of k-NN" in row]
    assert [row["step"] for row in looked] == [5, 10]
    measured = [name for name in looked[0] if " of " in name]
    assert len(measured) == 3 * 6 + 1
    for a, b in zip(one, two, strict=True):
        for name in ("hog_gradient", *(measured if a in looked else ())):
            assert b[name] == pytest.approx(a[name], rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize(("ranks", "kind"), KINDS)
def test_only_the_first_process_writes(out: Path, ranks: str, kind: str):
    def files(folder: Path) -> list[str]:
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())

    one, two = out / "one" / "whole", out / ranks / kind
    assert files(two) == files(one)
    assert len((two / "quarantine.jsonl").read_text().splitlines()) == 1
    pictures = sorted(one.glob("pictures-*/*.png"))
    assert len(pictures) == 3 * 2
    for picture in pictures:
        a, b = (Image.open(each / picture.relative_to(one)) for each in (one, two))
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def test_a_checkpoint_that_the_first_cannot_write_ends_both(out: Path):
    one, two = results(out, "one")["no place"], results(out, "two")["no place"]
    assert one[0].startswith("TrainingError: ")
    assert one[0].endswith("Then go on with --resume.")
    assert two == [one[0].replace("/one/", "/two/"), "ReportedError: "]


def test_images_that_only_one_process_lacks_end_both_and_nothing_is_lost(out: Path):
    assert results(out, "one")["no images"] == ["TrainingError: the images are gone."]
    assert results(out, "two")["no images"] == [
        "TrainingError: the images are gone.",
        "ReportedError: ",
    ]
    for ranks in ("one", "two"):
        assert max((out / ranks / "rescued").iterdir()).name == "step-00000002"


def test_predictions_of_two_processes_are_in_the_order_of_the_images(out: Path):
    one, two = results(out, "one")["predictions"], results(out, "two")["predictions"]
    np.testing.assert_allclose(two.pop("probabilities"), one.pop("probabilities"), rtol=1e-5)
    assert len(two["paths"]) == 7
    assert two == one
