"""A fine-tuned encoder under a detector of torchvision's: finding, and the files it is kept in."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from simmim.config.resolved import PixelFormat
from simmim.data.loading.geometry import whole_geometry
from simmim.data.loading.images import ImageSet
from simmim.data.loading.loader import none_readable
from simmim.data.sources.boxed import tells_boxes
from simmim.data.sources.boxes import Boxes
from simmim.data.sources.find import find_images
from simmim.errors import DataError
from simmim.evaluate.features import Progress
from simmim.evaluate.precision import Found
from simmim.evaluate.share import Share
from simmim.interop.load import images_for, to_input
from simmim.models.encoder import Encoder
from simmim.models.pyramid import Pyramid
from simmim.tasks.detections import Detections
from simmim.tasks.heads import HEAD, read_head, save_head
from simmim.tensors.patches import normalise
from simmim.training.step import looking
from simmim.training.world import ALONE, World

Kind = Literal["faster-rcnn", "retinanet", "fcos"]

DETECTOR = "detector.safetensors"
ENCODER = "backbone.encoder."
SCORE = 0.01
"""Least score of an object that is told."""
MOST = 100
"""Most objects that are told of an image, as COCO's measure counts them."""
FINEST = 3
"""Least pixels between two places of a map that boxes are looked for in."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the boxes that are corrected."""


class Detector(nn.Module):
    """An encoder, maps of several resolutions from it, and a detector on them.

    Args:
        encoder: The backbone.
        pixels: How images are read and normalised for it.
        classes: Names of what is looked for.
        kind: Which detector of torchvision's.
    """

    def __init__(
        self, encoder: Encoder, pixels: PixelFormat, classes: Sequence[str], kind: Kind
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.classes = list(classes)
        self.kind: Kind = kind
        self.net: Any = _net(encoder, len(self.classes), kind)
        self.net.transform = _AsTheyAre()
        self.first = 1 if kind == "faster-rcnn" else 0
        """The label of the first class: for some, 0 is the background."""

    @property
    def encoder(self) -> Encoder:
        """The backbone."""
        return self.net.backbone.encoder

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name, where there are targets; else ``boxes``, ``labels`` and ``scores``.

        Args:
            images: Normalised (B, C, H, W).
            targets: ``boxes`` (n, 4) in pixels and ``labels``, classes from 0 on, of each image;
                None, in evaluation mode: what is found is asked for, which is told alike.
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
        own = images_for(self.pixels, listed)
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
    # Not what lies where the view is blank.
    kept = (corners[:, 2:] - corners[:, :2] > 0.01).all(1)
    labels, scores = seen["labels"].cpu().numpy(), seen["scores"].float().cpu().numpy()
    return Found(image, corners[kept], labels[kept], scores[kept])


class _AsTheyAre(GeneralizedRCNNTransform):
    """Takes images as they come, of one size and normalised.

    torchvision's own enlarges those that are looked at, whatever it is told of those trained on.
    """

    def __init__(self) -> None:
        super().__init__(0, 0, [], [])

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """See ``GeneralizedRCNNTransform``."""
        sizes = [(each.shape[1], each.shape[2]) for each in images]
        return ImageList(torch.stack(images), sizes), targets


def _sizes(least: float, maps: int, steps: int) -> list[tuple[float, ...]]:
    """Three sides of boxes for each map, so many to an octave, from ``least`` at the finest."""
    return [tuple(least * 2 ** (level + k / steps) for k in range(3)) for level in range(maps)]


class _Anchors(AnchorGenerator):
    """Boxes around the places of each map, which lie as far from each other as ``strides`` tells.

    torchvision's own takes whole pixels, which a quarter of a patch may not be.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[float, ...]],
        ratios: tuple[float, ...],
        strides: Sequence[float],
    ) -> None:
        super().__init__(tuple(sizes), (ratios,) * len(sizes))  # type: ignore[arg-type]
        self.strides = strides

    def grid_anchors(
        self, grid_sizes: list[list[int]], strides: list[list[Tensor]]
    ) -> list[Tensor]:
        """See ``AnchorGenerator``."""
        exact = [
            [torch.full_like(each, stride, dtype=torch.float32) for each in rounded]
            for rounded, stride in zip(strides, self.strides, strict=True)
        ]
        return super().grid_anchors(grid_sizes, exact)


def _net(encoder: Encoder, classes: int, kind: Kind) -> nn.Module:
    """One of torchvision's detectors on an encoder, for images as they come, normalised.

    Boxes that are corrected have a patch a side upwards, where ViTDet's have two: small images have
    small objects. A map finer than ``FINEST`` takes most of the time and gives little. Widths go by
    that of the encoder, as ViTDet's for a ViT-B.
    """
    channels = min(256, max(64, encoder.width // 3 // 32 * 32))
    parts = 4 if encoder.stages == 1 else 1
    finest = kind == "faster-rcnn" and encoder.patch / parts >= FINEST
    backbone = Pyramid(encoder, channels, finest=finest)
    strides = backbone.strides
    least = encoder.patch * 4 / parts
    match kind:
        case "faster-rcnn":
            names = [str(k) for k in range(len(strides) - 1)]
            pool = MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)
            # As they are: torchvision takes all strides for powers of two.
            pool.scales = [1 / stride for stride in strides[:-1]]
            pool.map_levels = LevelMapper(0, len(names) - 1, round(14 * strides[2]), 2)
            return FasterRCNN(
                backbone,
                rpn_anchor_generator=_Anchors(_sizes(least, len(strides), 2), RATIOS, strides),
                rpn_head=RPNHead(channels, 3 * len(RATIOS), conv_depth=2),
                rpn_pre_nms_top_n_train=1000,
                rpn_post_nms_top_n_train=500,
                rpn_pre_nms_top_n_test=500,
                rpn_post_nms_top_n_test=300,
                box_roi_pool=pool,
                box_head=TwoMLPHead(channels * 7**2, 4 * channels),
                box_predictor=FastRCNNPredictor(4 * channels, classes + 1),
                box_batch_size_per_image=2 * channels,
                box_score_thresh=SCORE,
                box_detections_per_img=MOST,
            )
        case "retinanet":
            return RetinaNet(
                backbone,
                classes,
                anchor_generator=_Anchors(_sizes(least, len(strides), 3), RATIOS, strides),
                score_thresh=SCORE,
                detections_per_img=MOST,
            )
        case "fcos":
            return FCOS(
                backbone,
                classes,
                anchor_generator=_Anchors([(stride,) for stride in strides], (1.0,), strides),
                score_thresh=SCORE,
                detections_per_img=MOST,
            )


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
        settings={"detector": detector.kind},
        lineage=lineage,
        state=detector.timm_state() if state is None else state,
    )


def load_detector(folder: Path) -> Detector:
    """Read what ``save_detector`` wrote, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: A file is missing, damaged, of another format, or does not fit the others.
    """
    files = read_head(folder / DETECTOR, "detect")
    detector = Detector(files.encoder, files.pixels, files.classes, files.settings["detector"])
    own = {ENCODER + name: value for name, value in files.encoder.state_dict().items()}
    replace(files, head={**own, **files.head}).fill(detector.net, folder / DETECTOR)
    return detector.eval()
