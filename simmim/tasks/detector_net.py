"""torchvision's detectors on an encoder."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from simmim.models.encoder import Encoder
from simmim.models.pyramid import Pyramid

Kind = Literal["faster-rcnn", "mask-rcnn", "retinanet", "fcos"]

SCORE = 0.01
"""Least score of an object that is told."""
MOST = 100
"""Most objects that are told of an image, as COCO's measure counts them."""
FINEST = 3
"""Least pixels between two places of a map that boxes are looked for in."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the boxes that are corrected."""


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

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],  # noqa: ARG002
        original_image_sizes: list[tuple[int, int]],  # noqa: ARG002
    ) -> list[dict[str, Tensor]]:
        """See ``GeneralizedRCNNTransform``; masks stay in their boxes."""
        return result


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


def _pool(strides: Sequence[float], side: int) -> MultiScaleRoIAlign:
    """What cuts boxes from the maps, the one of half the resolution left out: so many places."""
    names = [str(k) for k in range(len(strides) - 1)]
    pool = MultiScaleRoIAlign(names, output_size=side, sampling_ratio=2)
    # As they are: torchvision takes all strides for powers of two.
    pool.scales = [1 / stride for stride in strides[:-1]]
    pool.map_levels = LevelMapper(0, len(names) - 1, round(14 * strides[2]), 2)
    return pool


def detector_net(encoder: Encoder, classes: int, kind: Kind, window: int) -> nn.Module:
    """One of torchvision's detectors on an encoder, for images as they come, normalised.

    Boxes that are corrected have a patch a side upwards, where ViTDet's have two: small images have
    small objects. A map finer than ``FINEST`` takes most of the time and gives little. Widths go by
    that of the encoder, as ViTDet's for a ViT-B.
    """
    net = _net(encoder, classes, kind, window)
    net.transform = _AsTheyAre()
    return net


def _net(encoder: Encoder, classes: int, kind: Kind, window: int) -> nn.Module:
    channels = min(256, max(64, encoder.width // 3 // 32 * 32))
    parts = 4 if encoder.stages == 1 else 1
    finest = kind in ("faster-rcnn", "mask-rcnn") and encoder.patch / parts >= FINEST
    backbone = Pyramid(encoder, channels, finest=finest, window=window)
    strides = backbone.strides
    least = encoder.patch * 4 / parts
    match kind:
        case "faster-rcnn" | "mask-rcnn":
            net = FasterRCNN(
                backbone,
                rpn_anchor_generator=_Anchors(_sizes(least, len(strides), 2), RATIOS, strides),
                rpn_head=RPNHead(channels, 3 * len(RATIOS), conv_depth=2),
                rpn_pre_nms_top_n_train=1000,
                rpn_post_nms_top_n_train=500,
                rpn_pre_nms_top_n_test=500,
                rpn_post_nms_top_n_test=300,
                box_roi_pool=_pool(strides, 7),
                box_head=TwoMLPHead(channels * 7**2, 4 * channels),
                box_predictor=FastRCNNPredictor(4 * channels, classes + 1),
                box_batch_size_per_image=2 * channels,
                box_score_thresh=SCORE,
                box_detections_per_img=MOST,
            )
            if kind == "mask-rcnn":  # which adds these to the heads of the other
                heads: Any = net.roi_heads
                heads.mask_roi_pool = _pool(strides, 14)
                heads.mask_head = MaskRCNNHeads(channels, [channels] * 4, 1, LayerNorm2d)
                heads.mask_predictor = MaskRCNNPredictor(channels, channels, classes + 1)
            return net
        case "retinanet":
            # As in its second version: in a narrow head without norms little is left of the maps.
            norm = partial(nn.GroupNorm, 32)
            return RetinaNet(
                backbone,
                classes,
                anchor_generator=_Anchors(_sizes(least, len(strides), 3), RATIOS, strides),
                head=RetinaNetHead(channels, 3 * len(RATIOS), classes, norm_layer=norm),
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
