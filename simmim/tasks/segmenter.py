"""A fine-tuned encoder that tells the class of each pixel: predicting, and the files it is kept in.

An image of any size is scaled so that it just covers the window, as the plain view of it is, and
windows that overlap by a third are laid over the rest of it. Their logits are averaged and brought
to the image's own size.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim.config.resolved import PixelFormat
from simmim.config.task import Segmentation
from simmim.data.loading.geometry import Size
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import none_readable
from simmim.data.map_classes import MapClasses
from simmim.errors import DataError, SimmimError
from simmim.evaluate.confusion import Confusion, overlaps
from simmim.evaluate.features import Progress
from simmim.evaluate.parts import begun
from simmim.interop.load import images_for
from simmim.models.dense import Maps, build_head, usual_blocks
from simmim.models.encoder import Encoder
from simmim.runs.encoder import hash_of
from simmim.tasks.heads import head_state, read_head, save_head
from simmim.tasks.masks import mask_names, overlay, save_png
from simmim.tasks.scenes import Frame, Scene, SceneReader
from simmim.tensors.batch import IGNORE
from simmim.tensors.patches import normalise
from simmim.training.step import looking
from simmim.training.world import ALONE, World

SEGMENTER = "segmenter.safetensors"
OVERLAP = 1 / 3
"""Share of a window that the next one covers too, at least."""
_AT_ONCE = 8
"""Windows of a forward pass."""


class Segmenter(nn.Module):
    """A head on maps of an encoder's tokens, whose logits are brought to the image's size.

    Args:
        encoder: The backbone.
        pixels: How images are read and normalised for it.
        classes: What the values of masks mean.
        config: The head.
    """

    kind: ClassVar[str] = "segment"
    """The kind of the task that it answers."""
    outputs: ClassVar[tuple[str, str]] = ("logits", "probabilities")
    """Names of what it gives, and of what ``read`` makes of that."""

    def __init__(
        self, encoder: Encoder, pixels: PixelFormat, classes: MapClasses, config: Segmentation
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pixels = pixels
        self.map_classes = classes
        self.classes = classes.names
        self.window = encoder.image_size
        self.maps = Maps(encoder, config.blocks or usual_blocks(encoder, config.head))
        width = config.width or min(512, max(64, encoder.width // 3 // 32 * 32))
        self.settings: dict[str, Any] = {
            "head": config.head,
            "blocks": list(self.maps.blocks),
            "width": width,
        }
        patch = encoder.patch if encoder.stages == 1 else None
        self.head = build_head(config.head, self.maps.widths, width, len(self.classes), patch)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, H, W) of normalised images (B, C, H, W)."""
        logits = self.head(self.maps(self.encoder, images)).float()
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)

    def read(self, logits: Tensor) -> Tensor:
        """Probabilities of the classes, of each pixel."""
        return logits.softmax(1)

    def timm_state(self) -> dict[str, Tensor]:
        """The encoder's weights under timm's names, and the head's."""
        return head_state(self.encoder, self.head)

    def slide(self, image: Tensor) -> Tensor:
        """Averaged logits (classes, H, W) of windows over a normalised image (C, H, W).

        It is at least as large as the window on both sides; where it is as large, it is one pass.
        """
        places = windows((image.shape[1], image.shape[2]), self.window)
        total = image.new_zeros(len(self.classes), *image.shape[1:])
        count = image.new_zeros(1, *image.shape[1:])
        height, width = self.window
        for first in range(0, len(places), _AT_ONCE):
            chosen = places[first : first + _AT_ONCE]
            pieces = [image[:, top : top + height, left : left + width] for top, left in chosen]
            for (top, left), logits in zip(chosen, self(torch.stack(pieces)), strict=True):
                total[:, top : top + height, left : left + width] += logits
                count[:, top : top + height, left : left + width] += 1
        return total / count

    def scores(self, view: np.ndarray, pixels: PixelFormat) -> Tensor:
        """Logits (classes, H, W) of an image (H, W, C) that just covers a window.

        Args:
            view: The image.
            pixels: How it was read.
        """
        values = torch.from_numpy(view.copy()).permute(2, 0, 1)[None]
        image = normalise(values.to(next(self.parameters()).device), pixels)[0]
        return self.slide(image.contiguous())

    def segment(
        self, scene: Scene, frames: Sequence[Frame], also: Sequence["Segmenter"] = ()
    ) -> np.ndarray:
        """The class of each pixel of an image (h, w), at its own size.

        Args:
            scene: The image.
            frames: That it was read for: this segmenter's, then those of the others.
            also: Others that know the same classes: probabilities are averaged.
        """
        (first, *views), ((pixels, _), *others) = scene.views, frames
        found = self.scores(first, pixels)
        if also:
            found = found.softmax(0)
            for other, view, (pixels, _) in zip(also, views, others, strict=True):
                order = [other.classes.index(name) for name in self.classes]
                theirs = other.scores(view, pixels).softmax(0)[None, order]
                size = found.shape[1:]
                found += F.interpolate(theirs, size, mode="bilinear", align_corners=False)[0]
        return _largest(found[None], scene.size).cpu().numpy().astype(np.uint16)

    def measure(
        self,
        images: ImageSet,
        *,
        workers: int = 0,
        bad: dict[str, str] | None = None,
        progress: Progress | None = None,
        world: World = ALONE,
    ) -> Confusion:
        """Compare with masks, each pixel at the image's own size, over all processes.

        Args:
            images: With masks.
            workers: Background processes; 0 decodes in this one.
            bad: Takes up the unreadable images, each with its reason.
            progress: Told of each image.
            world: The processes, which share the images.

        Raises:
            DataError: None of the images could be read.
        """
        own, size = images_for(self.pixels, images), len(self.classes)
        unread = dict[str, str]() if bad is None else bad
        reader = SceneReader(own, [(own.pixels, self.window)], self.map_classes)
        counts, each = np.zeros((size, size), np.int64), dict[int, np.ndarray]()
        error: DataError | None = None
        try:
            with looking(self):
                for index, scene in reader.read(range(world.rank, len(own), world.ranks), workers):
                    if scene is not None:
                        assert scene.truth is not None
                        found = self.segment(scene, reader.frames)
                        one = confusion_of(scene.truth, found, size)
                        counts += one
                        each[index] = overlaps(one)
                    if progress is not None:
                        progress(index + 1, len(own))
        except DataError as failed:
            error = failed
        shares = world.gather((counts, each, reader.bad, error))
        for _, theirs, more, failed in shares:
            if failed is not None:
                raise failed
            each |= theirs
            unread |= more
        if not each:
            raise DataError(none_readable(own.paths, unread))
        by_image = np.stack([each[index] for index in sorted(each)])
        return Confusion(np.sum([one for one, *_ in shares], axis=0), self.classes, by_image)

    def predict(
        self,
        images: ImageSet | str | Path,
        folder: Path,
        *,
        also: Sequence["Segmenter"] = (),
        workers: int = 0,
        progress: Progress | None = None,
        world: World = ALONE,
    ) -> dict[str, str]:
        """Write masks/NAME.png and overlays/NAME.png for each image; return the unreadable ones.

        A mask has what stands for each class in the masks that were learned from, at the image's
        own size. NAME is the image's path without its ending.

        Args:
            images: A set, or where they are.
            folder: A new or an empty one, or one in which the same was begun, to go on with.
            also: Others that know the same classes: probabilities are averaged.
            workers: Background processes; 0 decodes in this one.
            progress: Told of each image.
            world: The processes, which share the images.

        Raises:
            ConfigError: The folder holds anything else.
            DataError: None of the images could be read.
            ResourceError: A file could not be written.
        """
        own, bad = images_for(self.pixels, images), dict[str, str]()
        frames = [(own.pixels, self.window), *((each.pixels, each.window) for each in also)]
        reader = SceneReader(own, frames, shown=True)
        names, models = mask_names(own.paths), (self, *also)
        facts = {
            "weights": [hash_of(model.timm_state()) for model in models],
            "image_sizes": [list(model.window) for model in models],
            "pixels": [asdict(model.pixels) for model in models],
            "masks": [model.map_classes.facts() for model in models],
        }
        mine, error = range(world.rank, len(own), world.ranks), None
        with begun(folder, own.paths, facts, world), ExitStack() as evaluating:
            for model in models:
                evaluating.enter_context(looking(model))
            # The overlay is the last of an image's files.
            rows = [n for n in mine if not (folder / "overlays" / names[n]).exists()]
            try:
                for done, (index, scene) in enumerate(reader.read(rows, workers), 1):
                    if scene is not None:
                        classes = self.segment(scene, frames, also)
                        self._write(scene, classes, folder, names[index])
                    if progress is not None:
                        progress(len(mine) - len(rows) + done, len(mine))
            except SimmimError as failed:
                error = failed
            for theirs, failed in world.gather((reader.bad, error)):
                if failed is not None:
                    world.fail(failed)
                bad |= theirs
        if len(bad) == len(own):
            raise DataError(none_readable(own.paths, bad))
        return dict(sorted(bad.items()))  # not as they were met

    def _write(self, scene: Scene, classes: np.ndarray, folder: Path, name: str) -> None:
        save_png(folder / "masks" / name, self.as_values(classes))
        assert scene.shown is not None
        save_png(folder / "overlays" / name, overlay(scene.shown, self.colours[classes]))

    def as_values(self, classes: np.ndarray) -> np.ndarray:
        """Class indices as what stands for them in masks: uint8, or uint16 above 255."""
        values = np.array(self.map_classes.values)
        return values[classes].astype(np.uint8 if values.max() < 256 else np.uint16)

    @property
    def colours(self) -> np.ndarray:
        """(classes, 3) uint8."""
        return np.array(self.map_classes.colours, np.uint8)


def windows(image: Size, window: Size) -> list[tuple[int, int]]:
    """Top and left of windows that cover an image, the last of a row or column at its edge."""

    def along(whole: int, part: int) -> list[int]:
        if whole <= part:
            return [0]
        count = 1 - int(-(whole - part) // max(1, int(part * (1 - OVERLAP))))
        return [(whole - part) * k // (count - 1) for k in range(count)]

    rows, columns = along(image[0], window[0]), along(image[1], window[1])
    return [(top, left) for top in rows for left in columns]


def _largest(logits: Tensor, size: Size) -> Tensor:
    """The largest class of logits (1, K, h, w) at another size, in strips of bounded memory."""
    if tuple(logits.shape[2:]) == size:
        return logits[0].argmax(0)
    rows = max(1, 2**24 // (logits.shape[1] * size[1]))
    wide = F.interpolate(logits, (logits.shape[2], size[1]), mode="bilinear", align_corners=False)
    centres = (torch.arange(size[0], device=logits.device) + 0.5) * logits.shape[2] / size[0] - 0.5
    centres = centres.clamp(0, logits.shape[2] - 1)
    above = centres.floor().long()
    below = (above + 1).clamp(max=logits.shape[2] - 1)
    share = (centres - above)[None, :, None]
    parts = []
    for first in range(0, size[0], rows):
        part = slice(first, first + rows)
        top, bottom = wide[0][:, above[part]], wide[0][:, below[part]]
        parts.append((top + (bottom - top) * share[:, part]).argmax(0))
    return torch.cat(parts)


def confusion_of(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of true class [row] that were given class [column]; those of no class are left out."""
    known = truth != IGNORE
    pairs = truth[known].astype(np.int64) * classes + found[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def save_segmenter(
    folder: Path,
    segmenter: Segmenter,
    lineage: dict[str, object],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a segmenter, and its encoder as any other run's; see ``save_head``."""
    save_head(
        folder / SEGMENTER,
        Segmenter.kind,
        segmenter.encoder,
        segmenter.pixels,
        classes=segmenter.classes,
        settings={**segmenter.settings, "masks": segmenter.map_classes.facts()},
        lineage=lineage,
        state=segmenter.timm_state() if state is None else state,
    )


def load_segmenter(folder: Path) -> Segmenter:
    """Read what ``save_segmenter`` wrote, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: A file is missing, damaged, of another format, or does not fit the others.
    """
    files = read_head(folder / SEGMENTER, Segmenter.kind)
    settings = dict(files.settings)
    classes = MapClasses.of(files.classes, settings.pop("masks"))
    config = Segmentation(**{**settings, "blocks": tuple(settings["blocks"])})
    segmenter = Segmenter(files.encoder, files.pixels, classes, config)
    files.fill(segmenter.head, folder / SEGMENTER)
    return segmenter.eval()
