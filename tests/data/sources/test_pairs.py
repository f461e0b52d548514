"""Images beside their masks, and folders of classes that are laid out alike."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim.data.labels import labels_of
from simmim.data.sources.find import find_images
from simmim.data.sources.pairs import Pairs, pairs_source

SHARED = Path(__file__).parents[4] / "shared" / "data"
SIDE = 40


def photo(file: Path, rng: np.random.Generator, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).convert(mode).save(file)


def mask(file: Path, rng: np.random.Generator, mode: str = "L") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(rng.integers(0, 5, (SIDE, SIDE), np.uint8))
    if mode != "L":
        picture.putpalette([7 * i % 256 for i in range(768)])
        picture = picture if mode == "P" else picture.convert(mode)
    picture.save(file)


def filled(root: Path, rng: np.random.Generator, **folders: str) -> Path:
    """Folders of six files of the same names: photos, or masks of a mode."""
    for name, kind in folders.items():
        for i in range(6):
            file = root / name / f"{i:03}.png"
            photo(file, rng) if kind == "photo" else mask(file, rng, kind)
    return root


def kind_of(root: Path) -> str:
    return find_images(root).infos[0].kind


def test_letters_are_classes(tmp_path: Path, rng: np.random.Generator):
    root = filled(tmp_path, rng, **dict.fromkeys("abcuvwXYz", "photo"))
    images = find_images(root)
    assert len(images) == 54
    labels = labels_of(images)
    assert labels is not None
    assert labels.classes == sorted("abcuvwXYz")
    assert images.infos[0].notes == []


def test_x_and_y_are_a_pair_where_the_one_holds_masks_and_nothing_lies_beside(
    tmp_path: Path, rng: np.random.Generator
):
    for mode in ("L", "P", "RGB"):
        root = filled(tmp_path / mode, rng, x="photo", y=mode)
        images = find_images(root)
        assert images.infos[0].kind == "pairs"
        assert len(images) == 6
        assert (
            images.infos[0]
            .notes[0]
            .startswith(f"the images are those in {root / 'x'}, their masks")
        )
    (tmp_path / "L" / "notes").mkdir()
    (tmp_path / "L" / "notes" / "a.txt").touch()
    assert kind_of(tmp_path / "L") == "pairs"
    photo(tmp_path / "L" / "z" / "1.png", rng)
    assert kind_of(tmp_path / "L") == "folder"


def test_x_and_y_alone_are_classes_where_no_masks_are_in_them(
    tmp_path: Path, rng: np.random.Generator
):
    binary, other = tmp_path / "binary", tmp_path / "other"
    both = filled(tmp_path / "both", rng, x="photo", y="photo")
    filled(binary, rng, x="L", y="L")  # drawings in few values, both of them
    filled(other, rng, x="photo")
    for i in range(6):
        photo(other / "y" / f"{i:03}.png", rng, "L")
    for root in (both, binary, other):
        images = find_images(root)
        assert len(images) == 12
        assert images.infos[0].notes == [
            "x and y hold files of the same names, and are taken for class folders, since what is "
            "in y is not like masks"
        ]
    for i in range(6):  # masks of another size are none
        (other / "y" / f"{i:03}.png").unlink()
        Image.new("L", (9, 9)).save(other / "y" / f"{i:03}.png")
    assert kind_of(other) == "folder"


def test_known_names_beside_folders_like_them_are_judged_by_content(
    tmp_path: Path, rng: np.random.Generator
):
    elements = filled(
        tmp_path / "a", rng, image="photo", label="photo", table="photo", text="photo"
    )
    assert len(find_images(elements)) == 24
    scenes = filled(tmp_path / "b", rng, image="photo", label="P", depth="photo")
    assert kind_of(scenes) == "pairs"
    assert str(scenes / "depth") in find_images(scenes).infos[0].notes[0]
    alone = filled(tmp_path / "c", rng, img="photo", gt="photo")
    assert kind_of(alone) == "pairs"
    for folder in ("img/@eaDir", "@eaDir"):
        photo(alone / folder / "000.png", rng)
    assert kind_of(alone) == "pairs"


def test_masks_in_each_part_of_a_split_are_told_to_be_used(
    tmp_path: Path, rng: np.random.Generator
):
    for part in ("train", "val"):
        filled(tmp_path / part, rng, images="photo", Masks="L")
    images = find_images(tmp_path)
    assert len(images) == 24
    assert images.infos[0].notes[0] == (
        "what lies in 2 folders is used as images, though it may be masks, such as train/Masks "
        "beside train/images: name train/images as DATA to leave it out"
    )
    assert len(find_images(tmp_path / "train" / "images", tmp_path / "val" / "images")) == 12
    for part in ("a", "b"):
        filled(tmp_path / "other" / part, rng, x="photo", y="photo", images="photo")
        (tmp_path / "other" / part / "labels").mkdir()
        (tmp_path / "other" / part / "labels" / "000.txt").touch()
    assert find_images(tmp_path / "other").infos[0].notes == ["2 files passed over: 2 .txt"]


def test_what_cannot_be_read_tells_nothing(tmp_path: Path, rng: np.random.Generator):
    root = filled(tmp_path, rng, x="photo", y="L")
    for i in range(3):
        (root / "y" / f"{i:03}.png").write_bytes(b"damaged")
    assert kind_of(root) == "pairs"
    for i in range(6):
        (root / "x" / f"{i:03}.png").write_bytes(b"damaged")
    assert kind_of(root) == "folder"


def test_a_table_beside_pairs_gives_labels_to_the_images(tmp_path: Path, rng: np.random.Generator):
    root = filled(tmp_path, rng, images="photo", masks="L")
    rows = [f"images/{i:03}.png,{'cat' if i < 2 else 'dog'}" for i in range(4)]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    images = find_images(root)
    labels = labels_of(images)
    assert labels is not None
    assert list(labels.pairs()) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert labels.notes == [
        "metadata.csv labels 4 of 6 images; the other 2 have no label, such as 004.png"
    ]


@pytest.mark.parametrize("masks", ["labels", "Masks", "annotations"])
@pytest.mark.parametrize("end", ["", "_mask"])
def test_masks_are_not_images_and_are_found(
    masks: str, end: str, tmp_path: Path, rng: np.random.Generator
):
    for part in ("train", "val"):
        for i in range(3):
            photo(tmp_path / "images" / part / f"{i}.jpg", rng)
            if i:
                photo(tmp_path / masks / part / f"{i}{end}.png", rng)
    photo(tmp_path / "extra" / "x.png", rng)
    source = pairs_source(str(tmp_path))
    assert source is not None
    assert [entry.name for entry in source.entries()] == [
        f"{part}/{i}.jpg" for part in ("train", "val") for i in range(3)
    ]
    note = source.info().notes[0]
    assert f"their masks those in {tmp_path / masks}; what lies in" in note
    assert str(tmp_path / "extra") in note
    pairs = Pairs(*map(Path, source.info().parts))
    assert pairs.mask_of("train/1.jpg") == tmp_path / masks / "train" / f"1{end}.png"
    assert pairs.mask_of("train/0.jpg") is None
    assert pairs.mask_of("nowhere/0.jpg") is None
    assert list(find_images(tmp_path)) == [entry.name for entry in source.entries()]


def test_the_folder_of_images_and_those_in_it_have_the_masks_that_lie_beside(
    tmp_path: Path, rng: np.random.Generator
):
    for part in ("train", "val"):
        filled(tmp_path, rng, **{f"images/{part}": "photo", f"masks/{part}": "L"})
    filled(tmp_path, rng, **{"images/test": "photo"})
    whole = find_images(tmp_path)
    for name in ("images", "images/train", "images/val/../train"):
        images = find_images(tmp_path / name)
        assert images.infos[0].kind == "pairs"
        assert images.infos[0].where == str(tmp_path / name)
        row = list(images).index("train/003.png" if name == "images" else "003.png")
        assert np.array_equal(images.map(row), whole.map(list(whole).index("train/003.png")))
    assert kind_of(tmp_path / "images" / "test") == "folder"
    assert kind_of(tmp_path / "masks" / "train") == "folder"


def test_masks_of_no_image_are_counted(tmp_path: Path, rng: np.random.Generator):
    root = filled(tmp_path, rng, images="photo", masks="L")
    said = find_images(root).infos[0].notes
    for name in ("007.png", "more/1.png"):
        mask(root / "masks" / name, rng)
    note = "2 files among the masks are the mask of no image that is there, such as "
    assert find_images(root).infos[0].notes == [*said, f"{note}{root / 'masks' / '007.png'}"]


def test_class_folders_are_no_pairs(tmp_path: Path, rng: np.random.Generator):
    for folder in ("images", "labels"):
        for i in range(4):
            photo(tmp_path / folder / f"{folder}-{i}.png", rng)
    assert pairs_source(str(tmp_path)) is None
    assert len(find_images(tmp_path)) == 8
    (tmp_path / "empty" / "images").mkdir(parents=True)
    (tmp_path / "empty" / "masks").mkdir()
    assert pairs_source(str(tmp_path / "empty")) is None
    assert pairs_source(str(tmp_path / "gone")) is None


@pytest.mark.skipif(
    not (SHARED / "camvid.tar.gz").exists(), reason="the shared test data are not here"
)
def test_camvid(tmp_path: Path):
    import tarfile

    with tarfile.open(SHARED / "camvid.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    images = find_images(tmp_path / "camvid")
    assert len(images) == 367 + 101 + 233
    assert Pairs(*(tmp_path / "camvid" / name for name in ("images", "labels"))).hold_masks()
    pairs = Pairs(*map(Path, images.infos[0].parts))
    masks = [pairs.mask_of(name) for name in images]
    assert len({mask for mask in masks if mask is not None}) == len(images)
    with Image.open(masks[5] or "") as mask:
        opened = images.open(5)
        assert (opened.width, opened.height) == mask.size
        assert np.array_equal(images.map(5), np.asarray(mask))
