"""A fine-tuned encoder under a detector of torchvision's: finding, and the files it is kept in."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from simmim.config.resolved import PixelFormat
from simmim.data.loading.geometry import whole_geometry
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import none_readable
from simmim.data.sources.boxed import tells_boxes
from simmim.data.sources.boxes import Boxes
from simmim.data.sources.find import find_images
from simmim.data.sources.segmentation import encode_mask
from simmim.errors import DataError
from simmim.evaluate.features import Progress
from simmim.evaluate.precision import Found
from simmim.evaluate.share import Share
from simmim.interop.load import images_for, to_input
from simmim.models.encoder import Encoder
from simmim.tasks.detections import Detections
from simmim.tasks.detector_net import Kind, detector_net
from simmim.tasks.heads import HEAD, read_head, save_head
from simmim.tensors.patches import normalise
from simmim.training.step import looking
from simmim.training.world import ALONE, World

DETECTOR = "detector.safetensors"
ENCODER = "backbone.encoder."
SURE = 0.5
"""Least probability of a pixel that belongs to an object."""


class Detector(nn.Module):
    """An encoder, maps of several resolutions from it, and a detector on them.

    Args:
        encoder: The backbone.
        pixels: How images are read and normalised for it.
        classes: Names of what is looked for.
        kind: Which detector of torchvision's.
        window: See ``Pyramid``.

    Raises:
        ConfigError: The encoder's blocks cannot attend in windows.
    """

    def __init__(
        self,
        encoder: Encoder,
        pixels: PixelFormat,
        classes: Sequence[str],
        kind: Kind,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.classes = list(classes)
        self.settings = {"detector": kind, "window": window}
        self.net: Any = detector_net(encoder, len(self.classes), kind, window)
        self.first = 1 if kind in ("faster-rcnn", "mask-rcnn") else 0
        """The label of the first class: for some, 0 is the background."""

    @property
    def encoder(self) -> Encoder:
        """The backbone."""
        return self.net.backbone.encoder

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name, where there are targets; else ``boxes``, ``labels`` and ``scores``.

        Mask R-CNN finds ``masks`` (n, 1, 28, 28) within the boxes too, 0 to 1.

        Args:
            images: Normalised (B, C, H, W).
            targets: ``boxes`` (n, 4) in pixels, ``labels``, classes from 0 on, and for Mask R-CNN
                ``masks`` (n, H, W) of each image; None, in evaluation mode: what is found is asked
                for, which is told alike.
        """
        if targets is None:
            found = self.net(list(images))
            return [{**each, "labels": each["labels"] - self.first} for each in found]
        moved = [{**each, "labels": each["labels"] + self.first} for each in targets]
        with _comparing(self.net):
            return self.net(list(images), moved)

    def timm_state(self) -> dict[str, Tensor]:
        """The encoder's weights under timm's names, and all others."""
        others = {
            HEAD + name: value
            for name, value in self.net.state_dict().items()
            if not name.startswith(ENCODER)
        }
        return {**self.encoder.timm_state(), **others}

    def transform(self, image: str | Path | np.ndarray) -> Tensor:
        """A path, or decoded values, as (C, H, W) float32; see ``LoadedEncoder.transform``."""
        return to_input(image, self.pixels, self.encoder.image_size)

    def predict(
        self,
        images: ImageSet | str | Path,
        *,
        batch: int = 8,
        workers: int = 0,
        progress: Progress | None = None,
        world: World = ALONE,
    ) -> Detections:
        """What is found in each image, all of which is seen, in pixels of the image.

        Args:
            images: Read as the detector's pixel format says, whatever their own; or where they are,
                and how deep their values lie is looked at.
            batch: Images per forward pass.
            workers: Background processes; 0 decodes in this one.
            progress: Told of each batch.
            world: The processes, each of which takes a share of the images.

        Raises:
            DataError: None of the images could be read.
        """
        known = isinstance(images, ImageSet)
        listed = images if known else find_images(images, boxes=tells_boxes(str(images)))
        # What is known of the objects is read where it is compared with what was found.
        own = replace(images_for(self.pixels, listed), annotations=frozenset())
        size, device = self.encoder.image_size, next(self.parameters()).device
        share = Share(own, size, world, batch, workers, whole_geometry)
        rows: dict[int, Found] = {}
        with looking(self):
            for views, real in share:
                seen = self(normalise(views.images.to(device, non_blocking=True), own.pixels))
                if not real:
                    continue
                assert views.frames is not None
                places = zip(views.t.tolist(), seen, views.frames.tolist(), strict=True)
                rows |= {
                    place: _in_image(each, (frame[0], frame[1]), size, own.paths.boxes(place))
                    for place, each, frame in places
                }
                if progress is not None:
                    progress(int(views.t[-1]) + 1, len(own))
        rows = share.gather(rows)
        if not rows:
            raise DataError(none_readable(own.paths, share.bad))
        chosen = own.paths.select(list(rows))
        return Detections(chosen, list(rows.values()), own.pixels, self.classes, share.bad)


@contextmanager
def _comparing(net: nn.Module) -> Iterator[None]:
    """Let torchvision's parts return losses, which they do in training mode alone.

    The encoder stays in its mode: the loss is looked at without drop path too.
    """
    parts = [net, *(child for name, child in net.named_children() if name in ("rpn", "roi_heads"))]
    modes = [part.training for part in parts]
    for part in parts:
        part.training = True
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _in_image(
    seen: dict[str, Tensor], frame: tuple[int, int], size: tuple[int, int], told: Boxes
) -> Found:
    """What was found, in pixels of the image, or of the size that its boxes were drawn in."""
    boxes = seen["boxes"].double().cpu().numpy()
    image = told.within(frame).frame if all(told.frame) else frame
    corners = whole_geometry(*frame, size).from_view(boxes, image)
    clipped = corners.clip(0, [image[1], image[0]] * 2)
    # Not what lies where the view is blank.
    kept = (clipped[:, 2:] - clipped[:, :2] > 0.01).all(1)
    labels, scores = seen["labels"].cpu().numpy(), seen["scores"].float().cpu().numpy()
    masks = None
    if "masks" in seen:
        shown = seen["masks"].float().cpu()[torch.from_numpy(kept)]
        masks = [_in_box(*each, image) for each in zip(shown, corners[kept], strict=True)]
    return Found(image, clipped[kept], labels[kept], scores[kept], masks)


def _in_box(mask: Tensor, box: np.ndarray, image: tuple[int, int]) -> dict[str, Any]:
    """The runs of a mask (1, M, M) of a box, in the pixels of an image that is in part beyond it.

    Only around the box is it drawn: there may be many, and photos are large.
    """
    around = (box[2:] - box[:2]) / mask.shape[-1] + 2
    left, top = np.floor(box[:2] - around).astype(int).tolist()
    right, bottom = np.ceil(box[2:] + around).astype(int).tolist()
    moved = torch.from_numpy(box - [left, top] * 2)[None]
    drawn = paste_masks_in_image(mask[None], moved, (bottom - top, right - left))[0, 0]
    above, before = max(0, -top), max(0, -left)
    seen = drawn[above : image[0] - top, before : image[1] - left].numpy() >= SURE
    whole = np.zeros(image, bool, order="F")
    whole[max(0, top) :, max(0, left) :][: len(seen), : seen.shape[1]] = seen
    return encode_mask(whole)


def save_detector(
    folder: Path,
    detector: Detector,
    lineage: dict[str, object],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a detector, and its encoder as any other run's.

    ``detector.safetensors`` holds the encoder's weights under timm's names, and all others under
    names that begin with ``head.``.

    Args:
        folder: Of the run; it exists.
        detector: What to write.
        lineage: Where the weights come from; see ``save_encoder``.
        state: The weights, where the detector holds but this process's part of them.
    """
    save_head(
        folder / DETECTOR,
        "detect",
        detector.encoder,
        detector.pixels,
        classes=detector.classes,
        settings=detector.settings,
        lineage=lineage,
        state=detector.timm_state() if state is None else state,
    )


def load_detector(folder: Path) -> Detector:
    """Read what ``save_detector`` wrote, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: A file is missing, damaged, of another format, or does not fit the others.
    """
    files = read_head(folder / DETECTOR, "detect")
    detector, window = (files.settings[name] for name in ("detector", "window"))
    detector = Detector(files.encoder, files.pixels, files.classes, detector, window)
    own = {ENCODER + name: value for name, value in files.encoder.state_dict().items()}
    replace(files, head={**own, **files.head}).fill(detector.net, folder / DETECTOR)
    return detector.eval()
