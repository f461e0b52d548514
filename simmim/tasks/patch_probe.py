"""What frozen patch tokens tell of pixels: heads fitted to patches, measured as a segmenter is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim.config.task import Segmentation
from simmim.data.loading.images import ImageSet
from simmim.data.map_classes import MapClasses
from simmim.evaluate.confusion import accuracy_of, largest_everywhere, miou_of, overlaps
from simmim.evaluate.estimate import Estimate
from simmim.evaluate.patches import Layer, Patches, PatchReadings, Votes, patch_maps
from simmim.evaluate.protocols import Say
from simmim.interop.load import LoadedEncoder
from simmim.tasks.segmenter import Segmenter, confusion_of
from simmim.training.world import World

Fit = Callable[[Patches], nn.Module]
"""From patches to learn from to what tells the probabilities of others (n, D) → (n, classes)."""


class FrozenSegmenter(Segmenter):
    """A segmenter on one block of an encoder, whose head was fitted to patches.

    Args:
        encoder: It stays as it is.
        classes: What the values of masks mean.
        block: Number of the block, from 0.
        head: From features (n, D) to probabilities (n, classes).
    """

    def __init__(
        self, encoder: LoadedEncoder, classes: MapClasses, block: int, head: nn.Module
    ) -> None:
        inner = encoder.encoder
        blocks = tuple(sorted({block, inner.depth - 1}))
        super().__init__(inner, encoder.pixels, classes, Segmentation(head="linear", blocks=blocks))
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities (B, classes, H, W) of normalised images, between those of patches."""
        found = patch_maps(self.maps, self.encoder, images)[0]
        told = self.head(found.flatten(0, 2).float()).unflatten(0, found.shape[:3])
        size = images.shape[2:]
        return F.interpolate(told.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class PixelResult:
    """How well the class of pixels is told, with intervals of the bootstrap over images.

    Attributes:
        miou: The mean IoU over the classes that occur.
        accuracy: The share of pixels that is right.
    """

    miou: Estimate
    accuracy: Estimate

    @classmethod
    def of(cls, images: np.ndarray, seed: int) -> "PixelResult":
        """Of ``overlaps`` of images (n, 3, classes)."""
        return cls(*(Estimate.of_images(images, each, seed) for each in (miou_of, accuracy_of)))


@dataclass(frozen=True)
class PatchBlock:
    """The best block for one protocol.

    Attributes:
        number: Of the block, from 1.
        left_out: Mean IoU of each block over patches of the images that it was chosen on.
        result: Of the best one, on the images asked about.
    """

    number: int
    left_out: list[Estimate]
    result: PixelResult


@dataclass
class PixelResults:
    """What all protocols that were asked for say of an encoder.

    Attributes:
        asked: Number of images asked about.
        trivial: What always the largest class would be worth.
        protocols: By what they are called.
        blocks: By the protocol's name.
        skipped: Images asked about that could not be read, each with its reason.
    """

    asked: int = 0
    trivial: PixelResult | None = None
    protocols: dict[str, PixelResult] = field(default_factory=dict)
    blocks: dict[str, PatchBlock] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PatchProtocols:
    """How frozen patch tokens are measured.

    Attributes:
        classes: What the values of masks mean.
        names: ``knn`` or ``linear``, or both.
        blocks: Measure each block, too.
        k: Patches that vote.
        seed: Of whatever is drawn.
        world: The processes, which share the images asked about.
        workers: Background processes of each.
    """

    classes: MapClasses
    names: frozenset[str]
    blocks: bool
    k: int
    seed: int
    world: World
    workers: int = 0

    def measure(
        self, encoder: LoadedEncoder, learnt: PatchReadings, asked: ImageSet, say: Say
    ) -> PixelResults:
        """Fit each protocol to what was read, and ask about each pixel of other images."""
        found, last = PixelResults(), len(learnt.blocks) - 1

        def ask(block: int, words: str, fit: Fit) -> PixelResult:
            say(0.0, words)
            depth = encoder.encoder.depth - len(learnt.blocks)
            model = FrozenSegmenter(encoder, self.classes, depth + block, fit(learnt.blocks[block]))
            device = next(encoder.parameters()).device
            measured = model.to(device).measure(
                asked,
                bad=found.skipped,
                progress=lambda done, of: say(done / of, words),
                workers=self.workers,
                world=self.world,
            )
            assert measured.images is not None
            found.asked = len(measured.images)
            found.trivial = PixelResult.of(largest_everywhere(measured.images), self.seed)
            return PixelResult.of(measured.images, self.seed)

        for words, fit in self._fits():
            found.protocols[words] = ask(last, words, fit)
            if self.blocks:
                told = self._left_out(learnt.blocks, words, fit, say)
                best = int(np.argmax([each.value for each in told])) if told else last
                result = found.protocols[words] if best == last else ask(best, words, fit)
                found.blocks[words] = PatchBlock(best + 1, told, result)
        return found

    def _fits(self) -> Iterator[tuple[str, Fit]]:
        """Words and function of each protocol that is wanted."""
        count = len(self.classes.names)
        if "knn" in self.names:
            yield f"k-NN of patches, k = {self.k}, cosine", lambda x: Votes(x, count, self.k)
        if "linear" in self.names:
            yield "logistic regression on patches", lambda x: Layer(x, count, self.seed)

    def _left_out(self, blocks: list[Patches], words: str, fit: Fit, say: Say) -> list[Estimate]:
        """The mean IoU of each block over patches of images left out; []: none can be left out."""
        told = []
        for number, patches in enumerate(blocks):
            say(number / len(blocks), f"{words}: blocks")
            rows, left = patches.split(self.seed)
            if not len(left):
                return []
            asked = patches.part(left)
            with torch.no_grad():
                said = fit(patches.part(rows))(torch.from_numpy(asked.features)).argmax(1).numpy()
            each = [
                overlaps(confusion_of(asked.labels[own], said[own], len(self.classes.names)))
                for own in (asked.images == image for image in np.unique(asked.images))
            ]
            told.append(Estimate.of_images(np.stack(each), miou_of, self.seed))
        return told
