"""Fine-tuning for segmentation: an encoder and a head that tells the class of each pixel."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim.config.finetune import SegmentConfig
from simmim.config.optim import Role
from simmim.config.resolved import PixelFormat
from simmim.config.task import Segmentation
from simmim.data.loading.images import ImageSet
from simmim.data.map_classes import MapClasses
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.segmenter import Segmenter, save_segmenter
from simmim.tensors.batch import IGNORE, Batch
from simmim.tensors.counter import Purpose, uniform
from simmim.tensors.parts import usual_roles
from simmim.tensors.patches import normalise
from simmim.training.parallel import whole
from simmim.training.task import Task
from simmim.training.world import World

GREY = (0.299, 0.587, 0.114)
"""Red, green and blue in what the eye sees as brightness (ITU-R BT.601)."""


class SegmentTask(Task):
    """Tell the class of each pixel, by cross-entropy and dice, each a mean over an image.

    Args:
        segmenter: What is trained.
        config: Weights of the losses, and the colour jitter.
        shares: Of the pixels that each class has.
        seed: Of the colour jitter.
    """

    def __init__(
        self, segmenter: Segmenter, config: Segmentation, shares: list[float], seed: int
    ) -> None:
        super().__init__(segmenter)
        self.segmenter = segmenter
        self.config = config
        self.seed = seed
        device = next(segmenter.parameters()).device
        seen = torch.tensor(shares).clamp(min=1e-6)
        weights = seen**-config.balance
        self.weights = (weights / (weights * seen).sum()).to(device)
        lookup = sorted(segmenter.map_classes.lookup.items())
        self.values = torch.tensor([value for value, _ in lookup], device=device)
        self.places = torch.tensor([place for _, place in lookup], device=device)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy and dice, and the share of pixels that was right, of images with masks."""
        assert batch.maps is not None
        target = self.targets(batch.maps)
        logits = self.call(self.inputs(batch)).float()
        entropy = self._entropy(logits, target)
        dice = dice_loss(logits, target)
        known = target != IGNORE
        right = ((logits.argmax(1) == target) & known).sum((1, 2))
        return {
            "loss": entropy + self.config.dice * dice,
            "entropy_loss": entropy,
            "dice_loss": dice,
            "train_accuracy": (right / known.sum((1, 2)).clamp(min=1)).mean(),
        }

    def targets(self, maps: Tensor) -> Tensor:
        """Class indices (B, H, W) of the values of maps; ``IGNORE`` where they are none."""
        places = torch.searchsorted(self.values, maps.long()).clamp(max=len(self.values) - 1)
        return torch.where(self.values[places] == maps, self.places[places], IGNORE)

    def _entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over the known pixels of each image, then over the images."""
        each = F.cross_entropy(
            logits, target, self.weights, ignore_index=IGNORE, reduction="none"
        ).sum((1, 2))
        known = target != IGNORE
        weight = torch.where(known, self.weights[target.clamp(min=0)], 0.0).sum((1, 2))
        return (each / weight.clamp(min=1e-6)).mean()

    def inputs(self, batch: Batch) -> Tensor:
        """See ``Task``; in training with other brightness, contrast and saturation."""
        images = normalise(batch.images, self.segmenter.pixels)
        if self.segmenter.training and self.config.jitter:
            numbers = uniform(self.seed, Purpose.COLOUR, batch.t, 3)
            return jitter(images, self.segmenter.pixels, self.config.jitter, numbers)
        return images

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Those of the encoder, and the head beside its final norm."""
        encoder = self.segmenter.encoder
        roles = {f"encoder.{name}": role for name, role in encoder.roles().items()}
        for name, role in usual_roles(self.segmenter.head, ()).items():
            roles[f"head.{name}"] = role, encoder.depth + 1
        return roles

    def deploy(self, run: Path, lineage: dict[str, object], world: World) -> None:
        """See ``Task``."""
        state = whole(self.segmenter.timm_state(), world)
        world.write(lambda: save_segmenter(run, self.segmenter, lineage, state))


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - 2 |A ∩ B| / (|A| + |B|), a mean over the classes in each image, then over the images.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) class indices; ``IGNORE`` is left out.
    """
    known = (target != IGNORE)[:, None]
    shares = logits.softmax(1) * known
    truth = torch.zeros_like(shares).scatter(1, target.clamp(min=0)[:, None], 1.0) * known
    both = (shares * truth).sum((2, 3))
    present = truth.sum((2, 3)) > 0
    dice = 1 - (2 * both + 1) / (shares.sum((2, 3)) + truth.sum((2, 3)) + 1)
    return ((dice * present).sum(1) / present.sum(1).clamp(min=1)).mean()


def jitter(images: Tensor, pixels: PixelFormat, most: float, numbers: Tensor) -> Tensor:
    """Change brightness, contrast and, of three channels, saturation of normalised images.

    Each is multiplied by a factor in 1 ± ``most``, as ``numbers`` (B, 3) in [0, 1) say.
    """
    device, factors = images.device, 1 + most * (2 * numbers - 1)
    bright, contrast, saturation = (factors[:, k].view(-1, 1, 1, 1) for k in range(3))
    std = torch.tensor(pixels.std, device=device).view(-1, 1, 1)
    mean = torch.tensor(pixels.mean, device=device).view(-1, 1, 1)
    values = (images * std + mean) * bright
    middle = values.mean((1, 2, 3), keepdim=True)
    values = middle + contrast * (values - middle)
    if pixels.channels == 3:
        grey = (values * torch.tensor(GREY, device=device).view(-1, 1, 1)).sum(1, keepdim=True)
        values = grey + saturation * (values - grey)
    return (values - mean) / std


def begin_task(
    config: SegmentConfig,
    start: Encoder | None,
    size: tuple[int, int],
    images: ImageSet,
    *,
    classes: MapClasses,
    shares: list[float],
    world: World,
) -> SegmentTask:
    """A segmenter on the device, on a copy of an encoder or on one of random weights.

    Args:
        config: How to train; its encoder is that of ``start``.
        start: Gives the encoder its weights; None: they are random.
        size: Height and width in pixels.
        images: Tell how they are read.
        classes: What the values of masks mean.
        shares: Of the pixels that each class has.
        world: The processes.
    """
    pixels = images.pixels
    encoder = build_encoder(config.encoder, image_size=size, channels=pixels.channels)
    if start is not None:
        encoder.load_timm_state(start.timm_state())
    segmenter = Segmenter(encoder, pixels, classes, config.task)
    return SegmentTask(segmenter.to(world.device), config.task, shares, config.seed)
