"""What the looks at a run measure."""

import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from simmim.api.looks import KnnLook, halves
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.data.labels import labels_of
from simmim.data.loading.images import ImageSet
from simmim.data.loading.quarantine import Quarantine
from simmim.data.sources.find import find_images
from simmim.models.mim import build_model
from simmim.training.world import World

ALONE = World(0, 1, torch.device("cpu"))


def sides(names: list[str], labels: list[int]) -> dict[str, bool]:
    return dict(zip(names, halves(names, np.array(labels)).tolist(), strict=True))


def test_folders_below_the_class_stay_on_one_side():
    names = [f"{c}/video{v}/{i:03}.jpg" for c in "ab" for v in range(6) for i in range(10)]
    found = sides(names, [name[0] == "b" for name in names])
    videos = {name.rpartition("/")[0]: side for name, side in found.items()}
    assert all(found[name] == videos[name.rpartition("/")[0]] for name in names)
    assert [sum(side for video, side in videos.items() if video[0] == c) for c in "ab"] == [3, 3]


def test_names_that_follow_one_another_stay_on_one_side_but_for_three_borders():
    names = [f"a/{i:04}.jpg" for i in range(100)]
    found = sides(names, [0] * 100)
    assert sum(found.values()) == 50
    assert sum(found[a] != found[b] for a, b in itertools.pairwise(names)) == 3
    # The order in which images are drawn for the probe changes nothing.
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(100)]
    assert sides(shuffled, [0] * 100) == found


def test_both_sides_have_images_of_each_class_however_folders_differ():
    sizes = {"a": (1, 50), "b": (50, 1), "c": (2, 2, 2), "d": (2,), "e": (3,)}
    names = [
        f"{c}/{g}/{i}.jpg" for c, counts in sizes.items() for g, n in enumerate(counts)
        for i in range(n)
    ]  # fmt: skip
    labels = ["abcde".index(name[0]) for name in names]
    found = sides(names, labels)
    for c in sizes:
        assert {side for name, side in found.items() if name[0] == c} == {False, True}
    assert sides(["a/1.jpg", "b/1.jpg"], [0, 1]) == {"a/1.jpg": False, "b/1.jpg": True}


def test_frames_of_a_video_do_not_make_a_probe_of_noise_look_good(
    tiny: PretrainConfig, pixels: PixelFormat, tmp_path: Path
):
    """Classes that mean nothing: neighbours of the same video must not give them away."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for video in range(10):
            scene = rng.integers(0, 256, (4, 4, 3))
            for frame in range(8):
                array = np.clip(scene + rng.integers(-8, 9, scene.shape), 0, 255)
                file = tmp_path / label / f"{video:02}-{frame}.png"
                file.parent.mkdir(exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).resize((32, 32)).save(file)
    labels = labels_of(find_images(str(tmp_path)))
    assert labels is not None
    chosen, classes = labels.sample(512)
    torch.manual_seed(0)
    model = build_model(tiny, pixels, (32, 32)).eval()
    with torch.no_grad():
        images, quarantine = ImageSet(chosen, pixels, classes), Quarantine(None, 0, ["a"])
        look = KnnLook(model, images, 2, "fp32", ALONE, quarantine=quarantine)
        accuracy = look(0)["knn"]
        look.asked = np.arange(len(look.asked)) % 2 == 1  # every other image, as it comes
        leaking = look(0)["knn"]
    assert leaking > 0.9
    assert accuracy < 0.75
