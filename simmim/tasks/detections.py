"""What a detector finds in images, and the file that tells it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simmim.config.resolved import PixelFormat
from simmim.data.formats.image_file import UnreadableError
from simmim.data.loading.augment import whole_view
from simmim.data.names import plain
from simmim.data.sources.boxes import Boxes
from simmim.data.sources.coco import CocoSource
from simmim.data.sources.listing import Listing
from simmim.data.sources.segmentation import encode_mask
from simmim.errors import DataError
from simmim.evaluate.precision import Found, Precision, average_precision
from simmim.runs.files import write_text

SIDE = 1600
"""Longest side in pixels of an image that is shown."""


@dataclass(frozen=True)
class Detections:
    """What a detector finds in images.

    Attributes:
        images: Those that could be read.
        found: What was found in each of them.
        pixels: How the images were read.
        classes: Names, in the order of ``Found.labels``.
        skipped: Names of the images that could not be read, each with its reason.
    """

    images: Listing
    found: list[Found]
    pixels: PixelFormat
    classes: list[str]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def masked(self) -> bool:
        """Whether masks were looked for."""
        return any(each.masks is not None for each in self.found)

    def photo(self, row: int) -> np.ndarray:
        """An image, (h, w, C) with values from 0 to 1, at most ``SIDE`` pixels wide and high.

        Raises:
            UnreadableError: It cannot be had any more.
            OSError: The storage fails.
        """
        opened = self.images.open(row)
        scale = min(1.0, SIDE / max(opened.height, opened.width))
        size = max(1, round(opened.height * scale)), max(1, round(opened.width * scale))
        low, high = (np.array(each) for each in (self.pixels.low, self.pixels.high))
        return (whole_view(opened, self.pixels, size) - low) / (high - low)

    def truth(self, row: int) -> Boxes:
        """The boxes that an image is said to have, in the classes and the frame of ``found``."""
        told = self.images.boxes(row).within(self.found[row].frame)
        places = {name: k for k, name in enumerate(self.classes)}
        place = [places.get(name, -1) for name in self.images.categories]
        kinds = np.array(place, np.int64)[told.categories]
        return Boxes(told.frame, told.corners, kinds, told.crowd)

    def score_masks(self) -> Precision:
        """Compare masks with those that the images are said to have.

        Where the mask of an object covers nothing, what is found in its box counts neither for nor
        against.

        Raises:
            DataError: There are none, or one is damaged.
        """
        self.images.check_has("masks")
        truth, masks = [], []
        for row in range(len(self.images)):
            told = self.truth(row)
            told.crowd[:], drawn = self._masks(row, told)
            truth.append(told)
            masks.append(drawn)
        return average_precision(truth, self.found, self.classes, masks)

    def _masks(self, row: int, told: Boxes) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """What counts as a crowd of the masks that an image is said to have, and these as runs."""
        crowd, drawn = told.crowd.copy(), []
        try:
            for k, mask in enumerate(self.images.masks(row, told.frame)):
                if not mask.any():
                    left, top, right, bottom = told.corners[k].round().astype(int).clip(0).tolist()
                    mask[top:bottom, left:right] = crowd[k] = True
                drawn.append(encode_mask(mask))
        except UnreadableError as error:
            raise DataError(f"{self.images[row]}: {error.reason}.") from error
        return crowd, drawn

    def score(self) -> Precision:
        """Compare boxes with those that the images are said to have.

        Raises:
            DataError: There are none.
        """
        self.images.check_has("boxes")
        truth = [self.truth(row) for row in range(len(self.images))]
        return average_precision(truth, self.found, self.classes)

    def write(self, file: Path) -> list[str]:
        """Write COCO's results: the numbers of images and categories are those of their json.

        Where the images are of no json, they are numbered from 1 in their order, so are the
        classes, and each result has a ``file_name`` and a ``category_name`` too. Masks are told as
        compressed runs of pixels.

        Returns:
            What should be known: results of classes that the json does not have are left out.
        """
        info = self.images.infos[0]
        ids = CocoSource(Path(info.where)).ids() if info.kind == "coco" else None
        results: list[dict[str, Any]] = []
        lacking: dict[str, int] = {}
        for row, each in enumerate(self.found):
            name = self.images.entry(row).name
            sides = np.hstack([each.corners[:, :2], each.corners[:, 2:] - each.corners[:, :2]])
            masks = each.masks or [None] * len(sides)
            objects = zip(each.labels, each.scores, sides, masks, strict=True)
            for kind, score, box, mask in objects:
                title = self.classes[kind]
                result = {"bbox": [round(v, 3) for v in box.tolist()], "score": float(score)}
                if mask is not None:
                    result["segmentation"] = mask
                if ids is None:
                    named = {"file_name": plain(name), "category_name": title}
                    result |= {"image_id": row + 1, "category_id": int(kind) + 1, **named}
                elif title in ids[1]:
                    result |= {"image_id": ids[0][name], "category_id": ids[1][title]}
                else:
                    lacking[title] = lacking.get(title, 0) + 1
                    continue
                results.append(result)
        write_text(file, json.dumps(results))
        return [
            f"{count:,} results of the class {title} are left out, which {info.where} does not have"
            for title, count in lacking.items()
        ]
