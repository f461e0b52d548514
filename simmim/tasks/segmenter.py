"""A fine-tuned encoder that tells the class of each pixel: predicting, and the files it is kept in.

An image of any size is scaled so that it just covers the window, as the plain view of it is, and
windows that overlap by a third are laid over the rest of it. Their logits are averaged and brought
to the image's own size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from simmim.config.resolved import PixelFormat
from simmim.config.task import Segmentation
from simmim.data.formats.image_file import ImageFile, UnreadableError
from simmim.data.loading.augment import whole_view
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import none_readable
from simmim.data.map_classes import MapClasses
from simmim.data.names import plain
from simmim.data.sources.find import find_images
from simmim.errors import DataError
from simmim.evaluate.confusion import Confusion
from simmim.interop.load import scaled_for
from simmim.models.dense import LinearHead, Maps, UPerNetHead, usual_blocks
from simmim.models.encoder import Encoder
from simmim.runs.files import replacing
from simmim.tasks.heads import head_state, read_head, save_head
from simmim.tensors.batch import IGNORE
from simmim.tensors.patches import normalise
from simmim.training.step import looking
from simmim.training.world import ALONE, World

SEGMENTER = "segmenter.safetensors"
OVERLAP = 1 / 3
"""Share of a window that the next one covers too, at least."""
_AT_ONCE = 8
"""Windows of a forward pass."""
_OPACITY = 0.5
"""Of the colours of classes in an overlay."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Segmented:
    """What a segmenter says of an image.

    Attributes:
        path: Relative path of the image.
        index: Its place among those asked about.
        classes: (h, w) uint16 class indices, at the image's own size.
    """

    path: str
    index: int
    classes: np.ndarray


class Segmenter(nn.Module):
    """A head on maps of an encoder's tokens, whose logits are brought to the image's size.

    Args:
        encoder: The backbone.
        pixels: How images are read and normalised for it.
        classes: What the values of masks mean.
        config: The head.
    """

    def __init__(
        self, encoder: Encoder, pixels: PixelFormat, classes: MapClasses, config: Segmentation
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pixels = pixels
        self.map_classes = classes
        self.classes = classes.names
        self.window = encoder.image_size
        last = (encoder.depth - 1,)
        usual = usual_blocks(encoder) if config.head == "upernet" else last
        self.maps = Maps(encoder, config.blocks or usual)
        width = config.width or min(512, max(64, encoder.width // 3 // 32 * 32))
        self.settings: dict[str, Any] = {
            "head": config.head,
            "blocks": list(self.maps.blocks),
            "width": width,
        }
        if config.head == "linear":
            self.head: nn.Module = LinearHead(self.maps.widths, len(self.classes))
        else:
            patch = encoder.patch if encoder.stages == 1 else None
            self.head = UPerNetHead(self.maps.widths, width, len(self.classes), patch)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, H, W) of normalised images (B, C, H, W)."""
        logits = self.head(self.maps(self.encoder, images)).float()
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)

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

    def segment(self, opened: ImageFile) -> np.ndarray:
        """The class of each pixel of an image (h, w), at its own size.

        Raises:
            UnreadableError: It cannot be decoded.
        """
        scaled = covering((opened.height, opened.width), self.window)
        values = torch.from_numpy(whole_view(opened, self.pixels, scaled).copy())
        device = next(self.parameters()).device
        image = normalise(values.permute(2, 0, 1)[None].to(device), self.pixels)[0]
        logits = self.slide(image.contiguous())[None]
        size = (opened.height, opened.width)
        return _largest(logits, size).cpu().numpy().astype(np.uint16)

    def run_over(
        self, images: ImageSet, *, bad: dict[str, str], world: World = ALONE
    ) -> Iterator[Segmented]:
        """Yield what is said of this process's share of images.

        Args:
            images: Of all processes.
            bad: Takes up the unreadable ones, each with its reason.
            world: The processes; each is to come to the end.
        """
        with looking(self):
            for index in range(world.rank, len(images), world.ranks):
                path = images.paths[index]
                try:
                    found = self.segment(images.open(index))
                except UnreadableError as error:
                    bad[path] = error.reason
                else:
                    yield Segmented(path, index, found)

    def measure(self, images: ImageSet, *, world: World = ALONE) -> Confusion:
        """Compare with masks, each pixel at the image's own size, over all processes.

        Raises:
            DataError: None of the images could be read.
        """
        size, bad, seen = len(self.classes), dict[str, str](), 0
        counts = np.zeros((size, size), np.int64)
        error: DataError | None = None
        try:
            for found in self.run_over(images, bad=bad, world=world):
                try:
                    truth = self.truth(images, found.index)
                except UnreadableError as unread:
                    bad[found.path] = f"its label map: {unread.reason}"
                    continue
                counts += confusion_of(truth, found.classes, size)
                seen += 1
        except OSError as failed:
            error = DataError(f"reading {images.paths.where} failed: {failed}.")
        shares = world.gather((counts, bad, seen, error))
        for _, _, _, failed in shares:
            if failed is not None:
                raise failed
        if not sum(seen for _, _, seen, _ in shares):
            every = {path: reason for _, each, _, _ in shares for path, reason in each.items()}
            raise DataError(none_readable(images.paths, every))
        return Confusion(np.sum([each for each, _, _, _ in shares], axis=0), self.classes)

    def truth(self, images: ImageSet, index: int) -> np.ndarray:
        """Class indices of an image's mask (h, w), ``IGNORE`` where it tells none."""
        values = images.paths.map(index)
        if values is None:
            raise UnreadableError("there is none")
        return self.map_classes.classes_of(values)

    def predict(
        self, images: ImageSet | str | Path, folder: Path, *, world: World = ALONE
    ) -> dict[str, str]:
        """Write masks/NAME.png and overlays/NAME.png for each image; return the unreadable ones.

        A mask has what stands for each class in the masks that were learned from, at the image's
        own size. NAME is the image's path without its ending.

        Args:
            images: A set, or where they are.
            folder: Is made where it is missing.
            world: The processes, which share the images.

        Raises:
            DataError: None of the images could be read.
        """
        if isinstance(images, ImageSet):
            own = images
        else:
            listing = find_images(images)
            own = ImageSet(listing, scaled_for(self.pixels, listing).pixels)
        bad: dict[str, str] = {}
        names = mask_names(own.paths)
        for found in self.run_over(own, bad=bad, world=world):
            name = names[found.index]
            save_png(folder / "masks" / name, self.as_values(found.classes))
            save_png(folder / "overlays" / name, self.overlay(own, found))
        every = {path: why for each in world.gather(bad) for path, why in each.items()}
        if len(every) == len(own):
            raise DataError(none_readable(own.paths, every))
        return every

    def as_values(self, classes: np.ndarray) -> np.ndarray:
        """Class indices as what stands for them in masks: uint8, or uint16 above 255."""
        values = np.array(self.map_classes.values)
        return values[classes].astype(np.uint8 if values.max() < 256 else np.uint16)

    def overlay(self, images: ImageSet, found: Segmented) -> np.ndarray:
        """The image under the colours of its classes (h, w, 3) uint8."""
        mixed = (1 - _OPACITY) * self.picture(images, found.index)
        return (mixed + _OPACITY * self.colours[found.classes]).round().astype(np.uint8)

    def picture(self, images: ImageSet, index: int) -> np.ndarray:
        """An image as it is shown, at its own size (h, w, 3) uint8."""
        opened = images.open(index)
        shown = whole_view(opened, self.pixels, (opened.height, opened.width))
        low, high = np.array(self.pixels.low), np.array(self.pixels.high)
        values = ((shown - low) / (high - low)).clip(0, 1) * 255
        values = values[..., :3] if values.shape[2] >= 3 else values[..., :1].repeat(3, 2)
        return values.round().astype(np.uint8)

    @property
    def colours(self) -> np.ndarray:
        """(classes, 3) uint8."""
        return np.array(self.map_classes.colours, np.uint8)


def covering(image: Size, window: Size) -> Size:
    """Height and width of an image scaled so that it just covers a window."""
    scale = max(window[0] / image[0], window[1] / image[1])
    return max(window[0], round(image[0] * scale)), max(window[1], round(image[1] * scale))


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


def mask_names(paths: Sequence[str]) -> list[str]:
    """Names of masks: those of the images with another ending, or one more where two were alike."""
    stems = [plain(str(Path(path).with_suffix(""))).lstrip("/") for path in paths]
    twice = (
        {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else ()
    )
    return [
        f"{plain(path) if stem in twice else stem}.png"
        for path, stem in zip(paths, stems, strict=True)
    ]


def save_png(file: Path, values: np.ndarray) -> None:
    """Write a picture, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        Image.fromarray(values).save(temporary, "PNG")


def save_segmenter(
    folder: Path,
    segmenter: Segmenter,
    lineage: dict[str, object],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a segmenter, and its encoder as any other run's; see ``save_head``."""
    save_head(
        folder / SEGMENTER,
        "segment",
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
    files = read_head(folder / SEGMENTER, "segment")
    settings = dict(files.settings)
    classes = MapClasses.of(files.classes, settings.pop("masks"))
    config = Segmentation(**{**settings, "blocks": tuple(settings["blocks"])})
    segmenter = Segmenter(files.encoder, files.pixels, classes, config)
    files.fill(segmenter.head, folder / SEGMENTER)
    return segmenter.eval()
