"""Images and their masks in folders side by side, as data for segmentation is laid out."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from simmim.data.endings import is_image
from simmim.data.sources.folder import FolderReader, FolderSource, is_folder
from simmim.data.sources.source import Entry, SourceInfo

IMAGES = ("images", "imgs", "img", "image", "jpegimages", "leftimg8bit", "x")
MASKS = (
    *("labels", "label", "masks", "mask", "annotations", "annots", "annot", "annotation"),
    *("segmentationclass", "segmentation", "segmentations", "gt", "gtfine", "groundtruth", "y"),
)
"""Names of the folders, in small letters."""
ENDS = ("", "_mask", "-mask", "_label", "_labels", "_gt", "_seg", "_L", "_P", "_labelIds")
"""What the name of a mask may have after the name of its image."""
SHARE = 0.5
"""Share of the images that must have a mask for the folders to be pairs."""
TRIED = 200
"""Images whose masks are looked for to tell."""


def recognise(where: str) -> "PairsSource | None":
    """Return the source that a folder with images and masks side by side stands for."""
    root = Path(where)
    if not root.is_dir():
        return None
    folders = {entry.name.lower(): entry.name for entry in os.scandir(root) if is_folder(entry)}
    images = next((folders[name] for name in IMAGES if name in folders), None)
    masks = [folders[name] for name in MASKS if name in folders]
    for mask in masks if images else []:
        pairs = Pairs(root / str(images), root / mask)
        if pairs.matching() >= SHARE:
            others = [str(root / name) for name in folders.values() if name not in (images, mask)]
            return PairsSource(root, pairs, others)
    return None


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
        found = []
        for folder, folders, names in os.walk(self.images):
            folders.sort()
            inner = Path(folder).relative_to(self.images).as_posix()
            prefix = "" if inner == "." else f"{inner}/"
            found += [f"{prefix}{name}" for name in sorted(names) if is_image(name)]
            if len(found) >= TRIED:
                break
        found = found[:TRIED]
        return sum(self.mask_of(name) is not None for name in found) / max(1, len(found))

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
class PairsSource:
    """Lists the images, and not the masks."""

    root: Path
    pairs: Pairs
    beside: list[str] = field(default_factory=list)
    """Other folders in the same place, which are passed over."""
    _folder: FolderSource = field(init=False)

    def __post_init__(self) -> None:
        self._folder = FolderSource(self.pairs.images)

    @property
    def others(self) -> Counter[str]:
        """See ``FolderSource``."""
        return self._folder.others

    def state(self) -> Any:
        """See ``Source``."""
        return self._folder.state()

    def unchanged(self, state: Any) -> bool:
        """See ``FolderSource``."""
        return self._folder.unchanged(state)

    def info(self) -> SourceInfo:
        """See ``Source``."""
        note = f"the images are those in {self.pairs.images}; the masks in {self.pairs.masks} are "
        note += "not trained on"
        if self.beside:
            note += f", nor is what lies in {', '.join(sorted(self.beside)[:5])}"
        images, masks = str(self.pairs.images), str(self.pairs.masks)
        return SourceInfo("pairs", str(self.root), [images, masks], notes=[note])

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        self._folder = FolderSource(self.pairs.images)
        yield from self._folder.entries()


class PairsReader(FolderReader):
    """Reads the images, and finds their masks."""

    def __init__(self, info: SourceInfo) -> None:
        super().__init__(info)
        self._pairs = Pairs(*map(Path, info.parts))

    def mask_of(self, name: str) -> Path | None:
        """Return the mask of the image of this name; None where it has none."""
        return self._pairs.mask_of(name)
