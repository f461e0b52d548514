"""Images and their masks in folders side by side, as data for segmentation is laid out."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from simmim.data.formats.decode import decode, read_file
from simmim.data.formats.endings import is_debris, is_image
from simmim.data.formats.image_file import UnreadableError
from simmim.data.formats.label_map import read_map
from simmim.data.sources.folder import FolderReader, FolderSource, is_folder
from simmim.data.sources.source import Entry, SourceInfo

IMAGES = ("images", "imgs", "img", "image", "jpegimages", "leftimg8bit", "x")
MASKS = (
    *("labels", "label", "masks", "mask", "annotations", "annots", "annot", "annotation"),
    *("segmentationclass", "segmentation", "segmentations", "gt", "gtfine", "groundtruth", "y"),
)
"""Names of the folders, in small letters."""
DOUBTFUL = frozenset({"x", "y"})
"""Those of them that may as well be classes."""
ENDS = ("", "_mask", "-mask", "_label", "_labels", "_gt", "_seg", "_L", "_P", "_labelIds")
"""What the name of a mask may have after the name of its image."""
SHARE = 0.5
"""Share of the images that must have a mask for the folders to be pairs."""
TRIED = 200
"""Images whose masks are looked for to tell."""
PARTS = 20
"""Folders that are looked into for such folders of their own."""
COMPARED = 8
"""Images that are compared with their masks where names do not tell."""
FEW, TIMES = 64, 4
"""Values that a mask has at most, and how many times as many its image has at least."""
LEVELS = 4
"""Folders, from the one that is named upwards, that may hold the images of a pair."""
POINTS = 1 << 16
"""Pixels of each that are looked at."""
UNUSED = "{n} file{s} among the masks {are} the mask of no image that is there, such as {such}"


def pairs_source(where: str) -> FolderSource | None:
    """Return the source that a folder with images and masks side by side stands for.

    Where another folder is laid out like these, or they are called x and y, their content must tell
    masks from classes; and x and y among other folders of images are classes.
    """
    root = Path(where)
    return (_within(root) or _beside(root)) if root.is_dir() else None


def _within(root: Path) -> FolderSource | None:
    """Return the source of a folder in, or the one, of the images that a folder above has."""
    for images in [root, *root.parents][:LEVELS]:
        if images.name.lower() not in IMAGES:
            continue
        with contextlib.suppress(OSError):  # above what was named, where nothing need be readable
            whole = _beside(images.parent)
            if isinstance(whole, PairsSource) and whole.pairs.images == images:
                pairs = Pairs(root, whole.pairs.masks / root.relative_to(images))
                if pairs.matching():
                    return PairsSource(root, where=str(root), pairs=pairs, beside=[])
    return None


def _beside(root: Path) -> FolderSource | None:
    """Return the source of a folder that images and masks lie in, each in a folder of its own."""
    folders = _folders(root)
    images = next((folders[name] for name in IMAGES if name in folders), None)
    remarks: list[str] = []
    for pairs in _named(root, folders):
        mask = pairs.masks.name
        others = [root / name for name in folders.values() if name not in (images, mask)]
        unsure = not pairs.sure()
        if unsure and any(next(FolderSource(each).entries(), None) for each in others):
            continue
        if not (unsure or pairs.are_like(others)) or pairs.hold_masks():
            beside = list(map(str, others))
            return PairsSource(pairs.images, where=str(root), pairs=pairs, beside=beside)
        remarks = [
            f"{images} and {mask} hold files of the same names, and are taken for class folders, "
            f"since what is in {mask} is not like masks"
        ]
    remarks += _below(root, folders.values())
    return FolderSource(root, remarks=remarks) if remarks else None


def _folders(root: Path) -> dict[str, str]:
    """Return the names of the folders in a folder, by what they are in small letters."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if is_folder(entry)]
    return {name.lower(): name for name in names if not is_debris(name)}


def _named(root: Path, folders: Mapping[str, str]) -> Iterator["Pairs"]:
    """Yield what is called like images and masks, and holds files of the same names."""
    images = next((folders[name] for name in IMAGES if name in folders), None)
    for mask in (folders[name] for name in MASKS if images and name in folders):
        pairs = Pairs(root / str(images), root / mask)
        if pairs.matching() >= SHARE:
            yield pairs


def _below(root: Path, folders: Iterable[str]) -> list[str]:
    """Say that masks are taken for images where each folder, such as train, has its own."""
    found = []
    for name in sorted(folders)[:PARTS]:
        with contextlib.suppress(OSError):  # the source itself will say it
            found += [each for each in _named(root / name, _folders(root / name)) if each.sure()]
    if not found:
        return []
    images, masks = (each.relative_to(root) for each in (found[0].images, found[0].masks))
    return [
        f"what lies in {len(found):,} folders is used as images, though it may be masks, such as "
        f"{masks} beside {images}: name {images} as DATA to leave it out"
    ]


@dataclass
class Pairs:
    """Two folders of the same shape: images, and masks called like them."""

    images: Path
    masks: Path

    def mask_of(self, name: str) -> Path | None:
        """Return the mask of an image; None where it has none.

        Args:
            name: Path of the image, relative to the folder of images.
        """
        folder, _, last = name.rpartition("/")
        stem = last.rpartition(".")[0] or last
        there = self._names.get(folder)
        if there is None:
            there = self._names[folder] = self._list(folder)
        for end in ENDS:
            if stem + end in there:
                return self.masks / folder / there[stem + end]
        return None

    def matching(self) -> float:
        """Return the share of the first images that have a mask."""
        masked = sum(self.mask_of(name) is not None for name in self._first)
        return masked / max(1, len(self._first))

    def sure(self) -> bool:
        """Tell whether they are called so plainly that they can hardly be classes."""
        return not {self.images.name.lower(), self.masks.name.lower()} & DOUBTFUL

    def are_like(self, others: list[Path]) -> bool:
        """Tell whether files are called alike in other folders too, as in folders of classes."""
        return any(Pairs(self.images, other).matching() >= SHARE for other in others)

    def hold_masks(self) -> bool:
        """Tell by some of them whether the masks have the sizes of the images, and few values."""
        paired = [name for name in self._first if self.mask_of(name) is not None]
        found = [self._is_masked(name) for name in paired[:: max(1, len(paired) // COMPARED)]]
        seen = [each for each in found if each is not None]
        return bool(seen) and sum(seen) > SHARE * len(seen)

    def _is_masked(self, name: str) -> bool | None:
        """Tell whether an image and its mask are that; None where one of them cannot be read."""
        try:
            image, mask = (
                decode(read_file(file)) for file in (self.images / name, self.mask_of(name)) if file
            )
        except (UnreadableError, OSError):
            return None
        few = _values(mask)
        return image.shape[:2] == mask.shape[:2] and few <= FEW and _values(image) >= TIMES * few

    @cached_property
    def _first(self) -> list[str]:
        """The first images."""
        found: list[str] = []
        for folder, folders, names in os.walk(self.images):
            folders[:] = sorted(name for name in folders if not is_debris(name))
            inner = Path(folder).relative_to(self.images).as_posix()
            prefix = "" if inner == "." else f"{inner}/"
            found += [f"{prefix}{name}" for name in sorted(names) if is_image(name)]
            if len(found) >= TRIED:
                break
        return found[:TRIED]

    @cached_property
    def _names(self) -> dict[str, dict[str, str]]:
        return {}

    def _list(self, folder: str) -> dict[str, str]:
        try:
            names = sorted(os.listdir(self.masks / folder))  # noqa: PTH208 - names, not Paths
        except OSError:
            return {}
        # A .png before others, which may be pictures of the masks.
        names.sort(key=lambda name: not name.lower().endswith(".png"))
        stems: dict[str, str] = {}
        for name in names:
            if is_image(name):
                stems.setdefault(name.rpartition(".")[0], name)
        return stems


@dataclass
class PairsSource(FolderSource):
    """Lists the images, and not the masks."""

    where: str = field(kw_only=True)
    pairs: Pairs = field(kw_only=True)
    beside: list[str] = field(kw_only=True)
    """Other folders in the same place, which are passed over."""
    _used: set[str] = field(default_factory=set)

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        self._used.clear()
        for entry in super().entries():
            mask = self.pairs.mask_of(entry.name)
            if mask is not None:
                self._used.add(str(mask))
            yield entry
        for folder, folders, names in os.walk(self.pairs.masks):
            folders[:] = sorted(name for name in folders if not is_debris(name))
            self._stamp(folder)
            for file in (str(Path(folder, name)) for name in sorted(filter(is_image, names))):
                if file not in self._used and not is_debris(Path(file).name):
                    self._tally.add(UNUSED, file)

    def info(self) -> SourceInfo:
        """See ``Source``."""
        note = f"the images are those in {self.pairs.images}, their masks those in "
        note += f"{self.pairs.masks}"
        if self.beside:
            note += f"; what lies in {', '.join(sorted(self.beside)[:5])} is left out"
        info, parts = super().info(), [str(self.pairs.images), str(self.pairs.masks)]
        options = {**info.options, "maps": True}
        return SourceInfo("pairs", self.where, parts, options, [note, *info.notes])


def _values(array: np.ndarray) -> int:
    """Return how many different pixels there are in an image, of a sample of them."""
    pixels = array.reshape(-1, array.shape[2])
    return len(np.unique(pixels[:: max(1, len(pixels) // POINTS)], axis=0))


class PairsReader(FolderReader):
    """Reads the images, and finds their masks."""

    def __init__(self, info: SourceInfo) -> None:
        super().__init__(info)
        self._pairs = Pairs(*map(Path, info.parts))

    def map(self, entry: Entry) -> np.ndarray | None:
        """See ``Reader``."""
        mask = self._pairs.mask_of(entry.name)
        if mask is None:
            self._pairs.masks.stat()  # raises where all of them are gone
            return None
        return read_map(read_file(mask))
