"""Images that are erased in part, and mixed with others: timm's RandomErasing and Mixup.

Both draw from generators that all of a process share, so these are set for each image, or pair,
from its place in the run: the same bits whatever the micro-batch, and when a run goes on.
"""

import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from simmim.config.augment import LabelledAugmentConfig
from simmim.tensors.counter import Purpose, seeded


class Mixture:
    """Erases rectangles, then mixes each two images that follow each other, and their targets.

    Args:
        config: How much.
        seed: Of the run.
    """

    def __init__(self, config: LabelledAugmentConfig, seed: int) -> None:
        self._seed = seed
        self._erase = self._mixup = None
        if config.erasing:
            self._erase = RandomErasing(config.erasing, mode="pixel", device="cpu")
        if config.mixes:
            self._mixup = Mixup(
                config.mixup or 0.0, config.cutmix or 0.0, label_smoothing=0.0, num_classes=2
            )

    def __call__(self, images: Tensor, targets: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and targets in training.

        Args:
            images: Normalised (B, C, H, W).
            targets: (B, outputs) float32.
            t: (B,) places in the run, one after another. An even one and the next are a pair.
        """
        images, places = images.clone(), t.tolist()
        if self._erase is not None:
            for image, place in zip(images, places, strict=True):
                with seeded(self._seed, Purpose.ERASE, place):
                    self._erase(image)
        if self._mixup is None:
            return images, targets
        mixed = targets.clone()
        own = torch.tensor([0, 1], device=targets.device)
        for k in range(places[0] % 2, len(places) - 1, 2):
            with seeded(self._seed, Purpose.MIXUP, places[k]):
                # Asked for the targets of two classes, it tells the share of each image in both.
                _, share = self._mixup(images[k : k + 2], own)
            mixed[k : k + 2] = share @ targets[k : k + 2]
        return images, mixed
